-- Factory strings: what lists hold, and that answers are exact distances in their order
-- whatever it is.
SET client_min_messages = warning;
SET max_parallel_workers_per_gather = 0;
CREATE FUNCTION sample_vector(seed int) RETURNS vector LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg((sin(seed % 97 * j) * 3 + hashint4(seed * 64 + j) / 2147483648.0)::real)::vector
        FROM generate_series(1, 64) AS j
$$;
CREATE TABLE item (id int PRIMARY KEY, v vector(64), h halfvec(64));
INSERT INTO item SELECT i, v, v FROM generate_series(1, 4000) AS i, sample_vector(i) AS v;
SET enable_seqscan = off;
SET enable_sort = off;

-- For an index: its factory string, bytes of a row, recall of the ten nearest of some queries by all lists,
-- distances that are not those of the operator, steps back in the order, rows of a scan without end.
CREATE FUNCTION measure(columns text, opclass text, operator text, factory text)
RETURNS TABLE (factory_of_index text, recall float8, wrong bigint, steps_back bigint, rows bigint) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE INDEX item_v ON item USING faiss_ivf (%I %I) WITH (factory = %L, lists = 16)', columns, opclass, factory);
    SET faiss_ivf.nprobe = 16;
    -- rows that came after the training, places of rows that went
    INSERT INTO item SELECT i, v, v FROM generate_series(4001, 4600) AS i, sample_vector(i) AS v;
    DELETE FROM item WHERE id % 7 = 0;
    EXECUTE format('SELECT s.factory FROM sight_index_stats(''item_v'') AS s') INTO factory_of_index;
    SELECT sight_index_recall('item_v', 10, 100) INTO recall;
    EXECUTE format('SELECT count(*) FILTER (WHERE abs(d - again) > 1e-4 * (1 + abs(again))), count(*) FILTER (WHERE d < previous)
        FROM (SELECT d, again, lag(d) OVER () AS previous FROM (SELECT %1$I %2$s %3$L AS d, (%1$I %2$s %3$L) + 0.0 AS again
            FROM item ORDER BY %1$I %2$s %3$L LIMIT 200) AS found) AS s', columns, operator, sample_vector(77777)) INTO wrong, steps_back;
    SET faiss_ivf.iterative_scan = relaxed_order;
    EXECUTE format('SELECT count(DISTINCT id) FROM (SELECT id FROM item ORDER BY %I %s %L) AS s', columns, operator, sample_vector(5)) INTO rows;
    RESET faiss_ivf.iterative_scan;
    RESET faiss_ivf.nprobe;
    DROP INDEX item_v;
    INSERT INTO item SELECT i, v, v FROM generate_series(1, 4000) AS i, sample_vector(i) AS v ON CONFLICT DO NOTHING;
    DELETE FROM item WHERE id > 4000;
    RETURN NEXT;
END
$$;
SELECT f AS factory, s.factory_of_index, s.recall > 0.99 AS recalls, s.wrong, s.steps_back, s.rows
    FROM unnest(ARRAY['IVF,Flat', 'IVF16,SQ8', 'IVF,SQ4', 'IVF,SQfp16', 'IVF,RaBitQ', 'RR,IVF,RaBitQ', 'RR,IVF,RaBitQ,Refine(SQ8)',
        'IVF,SQ4,Refine(SQfp16)', 'IVF,RaBitQ,RFlat', 'RR,IVF,SQ4,Refine(Flat)',
        'IVF,PQ16', 'IVF,PQ16x4fs,Refine(SQ8)', 'OPQ16_64,IVF,PQ16x8', 'PCA32,IVF,SQ8,RFlat', 'OPQ8_32,IVF,PQ8x4fs,RFlat', 'PCA48,IVF,RaBitQ']) WITH ORDINALITY AS f(f, n),
        LATERAL measure('v', 'vector_l2_ops', '<->', f) AS s ORDER BY n;
SELECT f AS factory, s.recall > 0.99 AS recalls, s.wrong, s.steps_back, s.rows
    FROM unnest(ARRAY['IVF,SQ8', 'RR,IVF,RaBitQ', 'RR,IVF,RaBitQ,Refine(SQ8)', 'IVF,RaBitQ,RFlat', 'IVF,PQ32x4fs', 'PCA32,IVF,SQ8', 'OPQ16,IVF,PQ16']) WITH ORDINALITY AS f(f, n),
        LATERAL measure('v', 'vector_ip_ops', '<#>', f) AS s ORDER BY n;
SELECT f AS factory, s.recall > 0.99 AS recalls, s.wrong, s.steps_back, s.rows
    FROM unnest(ARRAY['IVF,SQ8', 'RR,IVF,RaBitQ,Refine(SQ8)', 'IVF,RaBitQ,RFlat']) WITH ORDINALITY AS f(f, n),
        LATERAL measure('v', 'vector_cosine_ops', '<=>', f) AS s ORDER BY n;
SELECT o AS opclass, s.factory_of_index, s.recall > 0.99 AS recalls, s.wrong, s.steps_back, s.rows
    FROM (VALUES ('halfvec_l2_ops', '<->', 'RR,IVF,RaBitQ,Refine(SQ8)'), ('halfvec_ip_ops', '<#>', 'IVF,SQ8'),
        ('halfvec_cosine_ops', '<=>', 'IVF,RaBitQ,RFlat')) AS f(o, p, f),
        LATERAL measure('h', o, p, f) AS s ORDER BY o;
-- rows that are nothing like those that the codes were trained with, then vectors at the end of what floats hold
CREATE TABLE far (id int, v vector(64));
INSERT INTO far SELECT id, v FROM item;
CREATE INDEX far_l2 ON far USING faiss_ivf (v vector_l2_ops) WITH (lists = 8);
CREATE INDEX far_ip ON far USING faiss_ivf (v vector_ip_ops) WITH (lists = 8);
SET faiss_ivf.nprobe = 8;
INSERT INTO far SELECT 20000 + i, (SELECT array_agg(x * 3 + 7) FROM unnest(v::real[]) AS x)::vector FROM generate_series(1, 500) AS i, sample_vector(i) AS v;
SELECT sight_index_recall('far_l2', 10, 300) > 0.98 AS recalls_l2, sight_index_recall('far_ip', 10, 300) > 0.98 AS recalls_ip;
INSERT INTO far VALUES (10001, array_fill(3e38, ARRAY[64])::vector), (10002, array_fill(-3e38, ARRAY[64])::vector), (10003, array_fill(1e20, ARRAY[64])::vector);
SELECT id FROM far ORDER BY v <-> array_fill(3e38, ARRAY[64])::vector LIMIT 1;
SELECT id FROM far ORDER BY v <-> array_fill(1e20, ARRAY[64])::vector LIMIT 1;
SELECT id FROM far ORDER BY v <#> array_fill(1, ARRAY[64])::vector LIMIT 2;
RESET faiss_ivf.nprobe;
-- what is refused
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'HNSW32');
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF,SQ9');
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = '');
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF99999,Flat');
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF,PQ7', lists = 4);
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'PCA65,IVF,SQ8', lists = 4);
CREATE INDEX ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF32,SQ8', lists = 16);
-- the same number twice is no contradiction; nobody says anything
CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF32,SQ8', lists = 32);
SELECT factory, lists FROM sight_index_stats('item_v');
DROP INDEX item_v;
CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops);
SELECT factory, lists, state_bytes > 0 AS has_state, row_bytes > list_bytes AS has_rows FROM sight_index_stats('item_v');
-- few dimensions are not worth a code
CREATE TABLE short (v vector(63));
CREATE INDEX short_v ON short USING faiss_ivf (v vector_l2_ops);
INSERT INTO short SELECT array_fill(i, ARRAY[63])::vector FROM generate_series(1, 3000) AS i;
REINDEX INDEX short_v;
SELECT factory, lists FROM sight_index_stats('short_v');
-- an index without rows stores vectors as they are, until it is built anew
CREATE TABLE late (v vector(64));
CREATE INDEX late_v ON late USING faiss_ivf (v vector_l2_ops) WITH (factory = 'IVF,SQ8', lists = 4);
INSERT INTO late SELECT v FROM item LIMIT 100;
SELECT factory, entries FROM sight_index_stats('late_v');
REINDEX INDEX late_v;
SELECT factory, entries FROM sight_index_stats('late_v');
-- so many dimensions that 32 signs do not fit into a page
CREATE TABLE long (v halfvec(4000));
INSERT INTO long SELECT array_fill(i % 100 + 1, ARRAY[4000])::halfvec FROM generate_series(1, 60) AS i;
CREATE INDEX long_rabitq ON long USING faiss_ivf (v halfvec_l2_ops) WITH (factory = 'RR,IVF,RaBitQ', lists = 4);
CREATE INDEX long_v ON long USING faiss_ivf (v halfvec_l2_ops) WITH (lists = 4);
SELECT factory, entries FROM sight_index_stats('long_v');
-- an index of an expression reads its rows through the expression
CREATE INDEX half_of_v ON item USING faiss_ivf ((v::halfvec(64)) halfvec_l2_ops) WITH (lists = 16);
SELECT count(*) FROM (SELECT id FROM item ORDER BY v::halfvec(64) <-> sample_vector(3)::halfvec(64) LIMIT 7) AS s;
SELECT rows_reranked >= 7 AS reranked, entries_refined >= 7 AS refined, rows_returned FROM sight_index_last_scan();
-- a plan without a scan can be explained; what that says is each PostgreSQL's own
DO $$ BEGIN EXECUTE 'EXPLAIN (ANALYZE) SELECT id FROM item WHERE false ORDER BY v <-> sample_vector(3) LIMIT 1'; END $$;
-- a cursor that is open when its transaction ends
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM item ORDER BY v <-> sample_vector(3);
FETCH 2 FROM c;
ROLLBACK;
BEGIN;
DECLARE c CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY v <-> sample_vector(3) LIMIT 3;
FETCH 1 FROM c;
SAVEPOINT s;
SELECT 1 / 0;
ROLLBACK TO s;
COMMIT;
FETCH 1 FROM c;
CLOSE c;
