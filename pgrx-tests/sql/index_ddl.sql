-- Kinds of tables and of index definitions.
SET client_min_messages = warning;
SET enable_seqscan = off;
CREATE FUNCTION pair(i int) RETURNS vector LANGUAGE sql IMMUTABLE AS
    $$ SELECT ARRAY[i % 37, i % 41]::vector $$;

SELECT opcname, amvalidate(oid) FROM pg_opclass
    WHERE opcmethod = (SELECT oid FROM pg_am WHERE amname = 'faiss_ivf') ORDER BY 1;

-- unlogged and temporary tables
CREATE UNLOGGED TABLE u (id int, v vector(2));
CREATE INDEX u_v ON u USING faiss_ivf (v vector_l2_ops);
INSERT INTO u SELECT i, pair(i) FROM generate_series(1, 2000) i;
SELECT id FROM u ORDER BY v <-> pair(1000), id LIMIT 1;
ALTER TABLE u SET LOGGED;
SELECT id FROM u ORDER BY v <-> pair(1000), id LIMIT 1;
CREATE TEMP TABLE tmp (id int, v vector(2));
INSERT INTO tmp SELECT i, pair(i) FROM generate_series(1, 1500) i;
CREATE INDEX tmp_v ON tmp USING faiss_ivf (v vector_ip_ops) WITH (lists = 5);
INSERT INTO tmp SELECT i, pair(i) FROM generate_series(1501, 3000) i;
DELETE FROM tmp WHERE id % 2 = 0;
VACUUM tmp;
SET faiss_ivf.nprobe = 5;
SELECT count(*) FROM (SELECT id FROM tmp ORDER BY v <#> '[1,1]') s;
RESET faiss_ivf.nprobe;

-- concurrently, partial, on an expression
CREATE TABLE p (id int, kind int, v vector(2), a real[]);
INSERT INTO p SELECT i, i % 4, pair(i), ARRAY[i % 7, i % 11] FROM generate_series(1, 1517) i;
CREATE INDEX CONCURRENTLY p_v ON p USING faiss_ivf (v vector_l2_ops) WITH (lists = 8);
REINDEX INDEX CONCURRENTLY p_v;
SET faiss_ivf.nprobe = 8;
SELECT id FROM p ORDER BY v <-> pair(1000) LIMIT 1;
DROP INDEX p_v;
CREATE INDEX p_partial ON p USING faiss_ivf (v vector_l2_ops) WITH (lists = 4) WHERE kind = 1;
EXPLAIN (COSTS OFF) SELECT id FROM p WHERE kind = 1 ORDER BY v <-> pair(5) LIMIT 3;
SELECT count(*) FROM (SELECT id FROM p WHERE kind = 1 ORDER BY v <-> pair(5)) s;
CREATE INDEX p_expression ON p USING faiss_ivf ((a::vector(2)) vector_l2_ops);
EXPLAIN (COSTS OFF) SELECT id FROM p ORDER BY a::vector(2) <-> '[1,1]' LIMIT 3;
SELECT count(*) FROM (SELECT id FROM p ORDER BY a::vector(2) <-> '[1,1]') s;
ALTER TABLE p ADD COLUMN filled int DEFAULT random();
SELECT count(*) FROM (SELECT id FROM p WHERE kind = 1 ORDER BY v <-> pair(5)) s;
VACUUM FULL p;
SELECT count(*) FROM (SELECT id FROM p WHERE kind = 1 ORDER BY v <-> pair(5)) s;

-- partitions: each has its index, and their orders are merged
CREATE TABLE part (id int, v vector(2)) PARTITION BY HASH (id);
CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO part SELECT i, pair(i) FROM generate_series(1, 1517) i;
CREATE INDEX part_v ON part USING faiss_ivf (v vector_l2_ops) WITH (lists = 8);
EXPLAIN (COSTS OFF) SELECT id FROM part ORDER BY v <-> pair(77) LIMIT 3;
SELECT count(*) FILTER (WHERE d < previous) AS steps_back, count(*) FROM
    (SELECT d, lag(d) OVER () AS previous FROM
        (SELECT v <-> pair(77) AS d FROM part ORDER BY v <-> pair(77) OFFSET 0) s) s;

-- options and how they are shown
CREATE INDEX p_options ON p USING faiss_ivf (v vector_cosine_ops) WITH (lists = 3);
SELECT pg_get_indexdef('p_options'::regclass);
ALTER INDEX p_options SET (lists = 5);
REINDEX INDEX p_options;
SELECT pg_get_indexdef('p_options'::regclass);
-- an index belongs to its transaction
BEGIN;
CREATE INDEX p_gone ON p USING faiss_ivf (v vector_ip_ops);
ROLLBACK;
BEGIN;
CREATE TABLE fresh (id int, v vector(2));
INSERT INTO fresh SELECT i, pair(i) FROM generate_series(1, 1517) i;
CREATE INDEX fresh_v ON fresh USING faiss_ivf (v vector_l2_ops) WITH (lists = 8);
TRUNCATE fresh;
INSERT INTO fresh SELECT i, pair(i) FROM generate_series(1, 100) i;
SAVEPOINT s;
INSERT INTO fresh SELECT i, pair(i) FROM generate_series(101, 200) i;
ROLLBACK TO s;
SELECT count(*) FROM (SELECT id FROM fresh ORDER BY v <-> pair(5)) s;
COMMIT;
SELECT count(*) FROM (SELECT id FROM fresh ORDER BY v <-> pair(5)) s;
