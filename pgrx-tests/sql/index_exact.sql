-- With nprobe = lists the index answers as a sequential scan does, for every
-- distance, after a build, inserts, deletes, updates and vacuum.
SET client_min_messages = warning;

CREATE FUNCTION sample_vector(seed int) RETURNS vector LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg((hashint4(seed * 64 + j) % 50)::real)::vector FROM generate_series(1, 16) j
$$;

-- Distances of the nearest rows, and whether an index scan found them.
CREATE FUNCTION nearest(operator text, query vector, count int, use_index bool)
RETURNS numeric[] LANGUAGE plpgsql AS $$
DECLARE
    distances numeric[];
BEGIN
    PERFORM set_config('enable_seqscan', (NOT use_index)::text, true);
    PERFORM set_config('enable_indexscan', use_index::text, true);
    -- the bounds of lossy codes are not certain: under strict order a row may come too late
    PERFORM set_config('faiss_ivf.iterative_scan', CASE WHEN count > 1000 THEN 'relaxed_order' ELSE 'strict_order' END, true);
    EXECUTE format('SELECT array_agg(round(d::numeric, 4)) FROM
        (SELECT v %1$s $1 AS d FROM item ORDER BY v %1$s $1 LIMIT $2) nearest', operator)
        INTO distances USING query, count;
    RETURN distances;
END
$$;

-- For each operator: queries asked, answers that differ, rows an unlimited scan returns.
CREATE FUNCTION compare(count int DEFAULT 20)
RETURNS TABLE (operator text, queries bigint, wrong bigint, rows int) LANGUAGE sql AS $$
    SELECT o, count(*),
           count(*) FILTER (WHERE nearest(o, sample_vector(q), count, true)
                            IS DISTINCT FROM nearest(o, sample_vector(q), count, false)),
           max(cardinality(nearest(o, sample_vector(1), 1000000, true)))
    FROM unnest(ARRAY['<->', '<#>', '<=>']) o, generate_series(900001, 900010) q
    GROUP BY o ORDER BY o
$$;

CREATE TABLE item (id int PRIMARY KEY, v vector(16));
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(1, 3000) i;
CREATE INDEX item_l2 ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 20);
CREATE INDEX item_ip ON item USING faiss_ivf (v vector_ip_ops) WITH (lists = 20);
CREATE INDEX item_cosine ON item USING faiss_ivf (v vector_cosine_ops) WITH (lists = 20);
SET faiss_ivf.nprobe = 20;

SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM item ORDER BY v <-> sample_vector(5) LIMIT 3;
EXPLAIN (COSTS OFF) SELECT id FROM item ORDER BY v <#> sample_vector(5) LIMIT 3;
EXPLAIN (COSTS OFF) SELECT id FROM item ORDER BY v <=> sample_vector(5) LIMIT 3;
RESET enable_seqscan;

SELECT * FROM compare();
-- inserts
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(3001, 5000) i;
SELECT * FROM compare();
-- deletes, before and after vacuum
DELETE FROM item WHERE id % 3 = 0;
SELECT * FROM compare();
VACUUM item;
SELECT * FROM compare();
SELECT relname, reltuples FROM pg_class WHERE relname LIKE 'item\_%' AND relname <> 'item_pkey' ORDER BY 1;
-- updates
UPDATE item SET v = sample_vector(id + 100000) WHERE id % 5 = 0;
SELECT * FROM compare();
VACUUM item;
-- the space that vacuum freed is used again
SELECT pg_relation_size('item_l2') AS before \gset
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(6001, 6400) i;
SELECT pg_relation_size('item_l2') <= :before * 1.05 AS space_was_reused;
SELECT * FROM compare();
-- all rows deleted, and new ones
DELETE FROM item;
VACUUM item;
SELECT * FROM compare();
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(1, 100) i;
SELECT * FROM compare(200);
-- REINDEX and TRUNCATE within one session, whose cached centroids must go
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(101, 2000) i;
REINDEX TABLE item;
SELECT * FROM compare();
TRUNCATE item;
INSERT INTO item SELECT i, sample_vector(i) FROM generate_series(1, 50) i;
SELECT * FROM compare(200);

-- many rows, many dimensions: several pages for centroids and lists
CREATE TABLE wide (id int, v vector(700));
INSERT INTO wide SELECT i, (SELECT array_agg((hashint4(i * 1000 + j) % 20)::real) FROM generate_series(1, 700) j)::vector
    FROM generate_series(1, 600) i;
CREATE INDEX wide_v ON wide USING faiss_ivf (v vector_l2_ops) WITH (lists = 40);
SET enable_seqscan = off;
SET faiss_ivf.nprobe = 40;
SELECT count(*) AS exact FROM wide q CROSS JOIN LATERAL
    (SELECT w.id FROM wide w ORDER BY w.v <-> q.v LIMIT 1) n WHERE q.id <= 60 AND n.id = q.id;
-- the most dimensions there may be
CREATE TABLE widest (id int, v vector(2000));
INSERT INTO widest SELECT i, (SELECT array_agg((hashint4(i * 3000 + j) % 20)::real) FROM generate_series(1, 2000) j)::vector
    FROM generate_series(1, 30) i;
CREATE INDEX widest_v ON widest USING faiss_ivf (v vector_cosine_ops) WITH (lists = 4);
SET faiss_ivf.nprobe = 4;
SELECT count(*) AS exact FROM widest q CROSS JOIN LATERAL
    (SELECT w.id FROM widest w ORDER BY w.v <=> q.v LIMIT 1) n WHERE n.id = q.id;
