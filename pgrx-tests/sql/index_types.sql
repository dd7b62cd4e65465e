-- halfvec, expressions and partial indexes: with all lists read, the order of an exact scan.
SET client_min_messages = warning;
CREATE TABLE item (id int PRIMARY KEY, v vector(12), h halfvec(12));
-- clustered, and the same on every machine
INSERT INTO item (id, v) SELECT i, ARRAY(
    SELECT ((i % 37) * d % 11 + (i * 7919 * d) % 1009 / 1009.0)::real FROM generate_series(1, 12) AS d)::vector
    FROM generate_series(1, 3000) AS i;
INSERT INTO item (id, v) VALUES (0, array_fill(0, ARRAY[12])::vector), (-1, NULL);
UPDATE item SET h = v::halfvec(12);
CREATE INDEX item_l2 ON item USING faiss_ivf (h halfvec_l2_ops) WITH (lists = 20);
CREATE INDEX item_ip ON item USING faiss_ivf (h halfvec_ip_ops) WITH (lists = 20);
CREATE INDEX item_cosine ON item USING faiss_ivf (h halfvec_cosine_ops) WITH (lists = 20);
CREATE INDEX item_expression ON item USING faiss_ivf ((v::halfvec(12)) halfvec_cosine_ops) WITH (lists = 20);
CREATE INDEX item_partial ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 5) WHERE id % 3 = 0;
ANALYZE item;
SELECT amvalidate(oid) FROM pg_opclass WHERE opcname LIKE 'halfvec%' AND opcmethod =
    (SELECT oid FROM pg_am WHERE amname = 'faiss_ivf');
SET faiss_ivf.nprobe = 20;
SET enable_seqscan = off;
SET enable_sort = off;

CREATE FUNCTION same_order(ours text, exact text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE a float8[]; b float8[];
BEGIN
    EXECUTE format('SELECT array_agg(d) FROM (SELECT %1$s AS d FROM %2$s ORDER BY %1$s LIMIT 100) s', ours, exact) INTO a;
    SET LOCAL enable_indexscan = off;
    EXECUTE format('SELECT array_agg(d) FROM (SELECT %1$s AS d FROM %2$s ORDER BY %1$s LIMIT 100) s', ours, exact) INTO b;
    SET LOCAL enable_indexscan = on;
    RETURN array_length(a, 1) = 100 AND
        (SELECT bool_and(abs(x - y) < 1e-5 * (1 + abs(y))) FROM unnest(a, b) AS u (x, y));
END $$;
SELECT q.id, same_order(format('h <-> %L::halfvec', q.h), 'item') AS l2, same_order(format('h <#> %L::halfvec', q.h), 'item') AS ip,
    same_order(format('h <=> %L::halfvec', q.h), 'item') AS cosine,
    same_order(format('v::halfvec(12) <=> %L::halfvec', q.h), 'item') AS expression,
    same_order(format('v <-> %L::vector', q.v), 'item WHERE id % 3 = 0') AS partial
    FROM item AS q WHERE q.id IN (5, 1234) ORDER BY 1;

-- NULL is not indexed, a vector without a direction not under the cosine
SELECT c.relname, (sight_index_stats(c.oid)).entries FROM pg_class c WHERE relname LIKE 'item\_%' AND relkind = 'i' AND relname <> 'item_pkey' ORDER BY 1;
-- inserted, updated, deleted
INSERT INTO item (id, v, h) SELECT 4000, v, h FROM item WHERE id = 77;
DELETE FROM item WHERE id = 77;
SELECT id FROM item ORDER BY h <=> (SELECT h FROM item WHERE id = 4000) LIMIT 1;
SELECT id FROM item ORDER BY v::halfvec(12) <=> (SELECT h FROM item WHERE id = 4000) LIMIT 1;
VACUUM item;
SELECT (sight_index_stats('item_l2')).entries;
-- limits are those of pgvector
CREATE TABLE wide (v vector(2001), h halfvec(4001), v2 vector(2000), h4 halfvec(4000));
CREATE INDEX ON wide USING faiss_ivf (v vector_l2_ops);
CREATE INDEX ON wide USING faiss_ivf (h halfvec_l2_ops);
CREATE INDEX ON wide USING faiss_ivf (v2 vector_cosine_ops);
CREATE INDEX ON wide USING faiss_ivf (h4 halfvec_cosine_ops);
INSERT INTO wide (v2, h4) SELECT array_fill(i, ARRAY[2000])::vector, array_fill(i, ARRAY[4000])::halfvec FROM generate_series(1, 20) AS i;
SELECT count(*) FROM (SELECT 1 FROM wide ORDER BY h4 <=> array_fill(1, ARRAY[4000])::halfvec) s;
SELECT count(*) FROM (SELECT 1 FROM wide ORDER BY v2 <=> array_fill(1, ARRAY[2000])::vector) s;
