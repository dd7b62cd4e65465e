-- Tables that are empty or odd, and input that is refused.
\set VERBOSITY default
CREATE TABLE t (id int, v vector(3));
CREATE INDEX t_v ON t USING faiss_ivf (v vector_l2_ops);
SET enable_seqscan = off;
SELECT id FROM t ORDER BY v <-> '[1,2,3]' LIMIT 5;
-- one row
INSERT INTO t VALUES (1, '[1,1,1]');
SELECT id FROM t ORDER BY v <-> '[1,2,3]' LIMIT 5;
-- NULLs are not indexed; a LIMIT above the number of rows
INSERT INTO t VALUES (2, NULL), (3, '[3,3,3]'), (4, '[0,0,0]');
SELECT id FROM t ORDER BY v <-> '[1,2,3]' LIMIT 100;
-- a NULL query returns the rows in any order
SELECT count(*) FROM (SELECT id FROM t ORDER BY v <-> NULL::vector) s;
SELECT count(*) FROM (SELECT id FROM t ORDER BY v <-> (SELECT NULL::vector)) s;
PREPARE nearest(vector) AS SELECT count(*) FROM (SELECT id FROM t ORDER BY v <-> $1 LIMIT 2) s;
EXECUTE nearest('[3,3,3]');
EXECUTE nearest(NULL);
-- wrong dimensions
SELECT id FROM t ORDER BY v <-> '[1,2,3,4]' LIMIT 5;
INSERT INTO t VALUES (5, '[1,2]');
-- duplicates, more than a page of them
CREATE TABLE same (id int, v vector(3));
INSERT INTO same SELECT i, '[1,2,3]' FROM generate_series(1, 2000) i;
CREATE INDEX same_v ON same USING faiss_ivf (v vector_l2_ops) WITH (lists = 10);
SELECT count(DISTINCT id) FROM (SELECT id FROM same ORDER BY v <-> '[1,2,3]') s;
-- fewer rows than lists
CREATE TABLE few (id int, v vector(2));
INSERT INTO few VALUES (1, '[1,0]'), (2, '[0,1]'), (3, '[5,5]');
CREATE INDEX few_v ON few USING faiss_ivf (v vector_ip_ops) WITH (lists = 100);
SELECT id FROM few ORDER BY v <#> '[2,1]';
-- zero vectors have no cosine: not indexed, and as a query all rows are equal
CREATE TABLE zero (id int, v vector(2));
INSERT INTO zero VALUES (1, '[1,0]'), (2, '[0,0]'), (3, '[0,2]');
CREATE INDEX zero_v ON zero USING faiss_ivf (v vector_cosine_ops);
SELECT id FROM zero ORDER BY v <=> '[1,0.1]';
INSERT INTO zero VALUES (4, '[0,0]'), (5, '[3,3]');
SELECT id FROM zero ORDER BY v <=> '[1,0.1]';
SELECT count(*) FROM (SELECT id FROM zero ORDER BY v <=> '[0,0]') s;
-- very large and very small values
CREATE TABLE extreme (id int, v vector(2));
INSERT INTO extreme VALUES (1, '[3e38,3e38]'), (2, '[1e-38,1e-38]'), (3, '[-3e38,1]'), (4, '[1,1]');
CREATE INDEX extreme_v ON extreme USING faiss_ivf (v vector_l2_ops);
SELECT count(*) FROM (SELECT id FROM extreme ORDER BY v <-> '[1,1]') s;
SELECT id FROM extreme ORDER BY v <-> '[1,1]' LIMIT 2;
-- an inner product that overflows into a NaN is last, as in a sequential scan
CREATE TABLE overflow (id int, v vector(16));
INSERT INTO overflow SELECT 1, array_agg(3e38 * (-1) ^ i)::real[]::vector FROM generate_series(1, 16) i;
INSERT INTO overflow VALUES (2, array_fill(1, ARRAY[16])::vector), (3, array_fill(-1, ARRAY[16])::vector);
CREATE INDEX overflow_v ON overflow USING faiss_ivf (v vector_ip_ops);
SELECT id, v <#> array_fill(3e38::real, ARRAY[16])::vector AS distance FROM overflow
    ORDER BY v <#> array_fill(3e38::real, ARRAY[16])::vector;
-- the few rows of a partial index lie in one of many blocks
CREATE TABLE scattered (kind int, v vector(2), padding text);
ALTER TABLE scattered ALTER padding SET STORAGE PLAIN;
INSERT INTO scattered SELECT i / 2000, ARRAY[i % 7, i % 11]::vector, repeat('x', 4010 * (1 - i / 2000))
    FROM generate_series(0, 2049) i;
CREATE INDEX scattered_v ON scattered USING faiss_ivf (v vector_l2_ops) WITH (lists = 5) WHERE kind = 1;
SET faiss_ivf.nprobe = 1;
SET faiss_ivf.iterative_scan = off;
SELECT count(*) BETWEEN 1 AND 49 AS reads_one_of_its_lists FROM
    (SELECT 1 FROM scattered WHERE kind = 1 ORDER BY v <-> '[1,1]') s;
RESET faiss_ivf.nprobe;
RESET faiss_ivf.iterative_scan;
-- definitions that are refused
CREATE TABLE undeclared (v vector);
CREATE INDEX ON undeclared USING faiss_ivf (v vector_l2_ops);
CREATE TABLE too_wide (v vector(2001));
CREATE INDEX ON too_wide USING faiss_ivf (v vector_l2_ops);
CREATE INDEX ON t USING faiss_ivf (v vector_l2_ops) WITH (lists = 0);
CREATE INDEX ON t USING faiss_ivf (v vector_l2_ops) WITH (lists = 65537);
CREATE INDEX ON t USING faiss_ivf (v vector_l2_ops) WITH (unknown = 1);
CREATE INDEX ON t USING faiss_ivf (v);
CREATE INDEX ON t USING faiss_ivf (id int4_ops);
CREATE UNIQUE INDEX ON t USING faiss_ivf (v vector_l2_ops);
CREATE INDEX ON t USING faiss_ivf (v vector_l2_ops, v vector_l2_ops);
SET maintenance_work_mem = '1MB';
CREATE TABLE hungry (v vector(2000));
INSERT INTO hungry SELECT array_fill(i, ARRAY[2000])::vector FROM generate_series(1, 10) i;
CREATE INDEX ON hungry USING faiss_ivf (v vector_l2_ops) WITH (lists = 1000);
RESET maintenance_work_mem;
-- settings
SET faiss_ivf.nprobe = -1;
SET faiss_ivf.iterative_scan = 'maybe';
SET faiss_ivf.unknown = 1;
SHOW faiss_ivf.nprobe;
SHOW faiss_ivf.iterative_scan;
SHOW faiss_ivf.max_probes;
