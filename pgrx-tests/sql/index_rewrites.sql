-- Whatever rewrites a table or moves an index: each time the index finds all rows.
SET client_min_messages = warning;
CREATE TABLE item (id int PRIMARY KEY, v vector(3));
INSERT INTO item SELECT i, ARRAY[i % 17, i % 23, i % 29]::vector FROM generate_series(1, 2500) i;
CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 12);
DELETE FROM item WHERE id % 5 = 0;
SET enable_seqscan = off;
SET enable_sort = off;
SET faiss_ivf.nprobe = 12;
CREATE FUNCTION complete() RETURNS bool LANGUAGE plpgsql AS $$
DECLARE by_index int[]; by_table int[];
BEGIN
    SELECT array_agg(id ORDER BY id) INTO by_index FROM (SELECT id FROM item ORDER BY v <-> '[3,4,5]' OFFSET 0) AS s;
    SET LOCAL enable_indexscan = off;
    SELECT array_agg(id ORDER BY id) INTO by_table FROM item;
    SET LOCAL enable_indexscan = on;
    RETURN by_index = by_table;
END $$;
EXPLAIN (COSTS OFF) SELECT id FROM item ORDER BY v <-> '[3,4,5]' OFFSET 0;
SELECT complete();
CLUSTER item USING item_pkey;
SELECT complete();
VACUUM FULL item;
SELECT complete();
REINDEX TABLE item;
SELECT complete();
REINDEX TABLE CONCURRENTLY item;
SELECT complete();
ALTER TABLE item ALTER id TYPE bigint;
ALTER TABLE item ALTER id TYPE int;
SELECT complete();
ALTER TABLE item SET UNLOGGED;
SELECT complete();
ALTER TABLE item SET LOGGED;
SELECT complete();
-- to a tablespace and back, the index and the table
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE elsewhere LOCATION '';
ALTER INDEX item_v SET TABLESPACE elsewhere;
SELECT complete();
ALTER TABLE item SET TABLESPACE elsewhere;
REINDEX (TABLESPACE pg_default) INDEX item_v;
SELECT complete();
-- a rollback takes back what a transaction did to the index
BEGIN;
INSERT INTO item SELECT i, ARRAY[1, 2, 3]::vector FROM generate_series(3001, 3200) i;
TRUNCATE item;
SELECT count(*) FROM item;
ROLLBACK;
SELECT complete();
BEGIN;
DROP INDEX item_v;
ROLLBACK;
SELECT complete();
-- within one transaction
BEGIN;
CREATE INDEX again ON item USING faiss_ivf (v vector_ip_ops) WITH (lists = 3);
INSERT INTO item SELECT i, ARRAY[1, 2, 3]::vector FROM generate_series(3001, 3200) i;
SAVEPOINT s;
DELETE FROM item WHERE id > 3100;
ROLLBACK TO s;
SELECT count(*) FROM (SELECT 1 FROM item ORDER BY v <#> '[1,1,1]' OFFSET 0) AS s;
COMMIT;
SELECT complete();
-- its type decides whether a table with an index may change
ALTER TABLE item ALTER v TYPE halfvec(3);
DROP INDEX item_v, again;
ALTER TABLE item ALTER v TYPE halfvec(3);
CREATE INDEX item_v ON item USING faiss_ivf (v halfvec_l2_ops);
TRUNCATE item;
SELECT lists, entries FROM sight_index_stats('item_v');
DROP TABLE item;
DROP TABLESPACE elsewhere;
