-- How many lists a scan reads: chosen by recall, measured at the build or by a calibration.
SET client_min_messages = warning;
CREATE TABLE item (id int PRIMARY KEY, v vector(16));
INSERT INTO item SELECT i, ARRAY(
    SELECT ((i % 101) * d % 13 + (i::bigint * 7919 * d * d) % 4099 / 1000.0)::real FROM generate_series(1, 16) AS d)::vector
    FROM generate_series(1, 8000) AS i;
CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 64);
ANALYZE item;
SET enable_seqscan = off;
CREATE VIEW stats AS SELECT * FROM sight_index_stats('item_v');
SELECT lists, entries, dead, target_recall, nprobe BETWEEN 2 AND 40 AS few, expected_recall >= 0.95 AS enough,
    training_rows > 6000 AS trained, trained_at > now() - interval '1 hour' AS lately, wants_reindex, imbalance BETWEEN 1 AND 4 AS balanced,
    total_bytes = pg_relation_size('item_v') AS complete,
    (recall_curve->0->>'recall_at_100')::float8 <= (recall_curve->0->>'recall_at_10')::float8 AS harder, jsonb_array_length(recall_curve) > 5 AS curve FROM stats;
-- nobody sets anything: recall is what was promised, as far as chance allows with other rows
SELECT sight_index_recall('item_v', 10, 500) >= 0.92 AS kept;
-- neither for more rows than the curve is measured for by default
SELECT sight_index_recall('item_v', 100, 200) >= 0.92 AS kept_for_100, sight_index_recall('item_v', 400, 50) >= 0.92 AS kept_for_400;
-- more is wanted, by the setting or by the index: more is read
CREATE TEMP TABLE before AS SELECT nprobe FROM stats;
SET faiss_ivf.target_recall = 0.999;
SELECT s.nprobe > b.nprobe AS more, s.target_recall FROM stats s, before b;
SET faiss_ivf.target_recall = 0.5;
SELECT s.nprobe < b.nprobe AS fewer FROM stats s, before b;
RESET faiss_ivf.target_recall;
ALTER INDEX item_v SET (target_recall = 0.999);
SELECT s.nprobe > b.nprobe AS more, s.target_recall FROM stats s, before b;
ALTER INDEX item_v RESET (target_recall);
ALTER INDEX item_v SET (target_recall = 1.5);
SET faiss_ivf.target_recall = -1;
-- a number of lists that is set wins
SET faiss_ivf.nprobe = 3;
SELECT nprobe FROM stats;
SELECT count(*) FROM (SELECT id FROM item ORDER BY v <-> (SELECT v FROM item WHERE id = 1) LIMIT 5) s;
SELECT lists_probed, entries_scanned > 100 AS scanned, rows_returned FROM sight_index_last_scan();
RESET faiss_ivf.nprobe;
-- queries that are unlike the rows need other lists
SELECT count(*) > 5 AS points, max(recall_at_10) AS most, max(recall_at_100) AS most_of_100 FROM sight_index_calibrate('item_v',
    (SELECT array_agg(array_fill(i, ARRAY[16])::vector) FROM generate_series(1, 60) AS i));
SET faiss_ivf.nprobe = 1;
SELECT sight_index_recall('item_v', 10, 200) BETWEEN 0.05 AND 0.9 AS low;
SET faiss_ivf.nprobe = 64;
SELECT sight_index_recall('item_v', 10, 200);
RESET faiss_ivf.nprobe;
SELECT count(*) > 5 AS points FROM sight_index_calibrate('item_v');
SELECT sight_index_recall('item_v', 10, 500) >= 0.9 AS kept;
SELECT count(*) FROM sight_index_calibrate(NULL);
-- a bound by rows
SET faiss_ivf.nprobe = 1;
SET faiss_ivf.max_scan_tuples = 1000;
SELECT count(*) < 3000 AS bounded FROM (SELECT id FROM item ORDER BY v <-> (SELECT v FROM item WHERE id = 1)) s;
SELECT entries_scanned BETWEEN 1000 AND 3000 AS bounded FROM sight_index_last_scan();
RESET faiss_ivf.max_scan_tuples;
RESET faiss_ivf.nprobe;
-- dead rows
BEGIN;
DELETE FROM item WHERE id % 2 = 0;
ROLLBACK;
DELETE FROM item WHERE id % 4 = 0;
SELECT entries, dead FROM stats;
VACUUM item;
SELECT entries, dead, free_entries > 1000 AS room FROM stats;
SELECT sight_index_prewarm('item_v') * 8192 = pg_relation_size('item_v') AS all_pages;
-- built before the rows came
CREATE TABLE late (v vector(16));
CREATE INDEX late_v ON late USING faiss_ivf (v vector_ip_ops);
SELECT lists, trained_at, wants_reindex FROM sight_index_stats('late_v');
INSERT INTO late SELECT v FROM item, generate_series(1, 2) LIMIT 9000;
SELECT lists, wants_reindex FROM sight_index_stats('late_v');
REINDEX INDEX late_v;
SELECT lists, wants_reindex FROM sight_index_stats('late_v');
-- what is refused
SELECT sight_index_stats('item');
SELECT sight_index_stats('item_pkey');
SELECT sight_index_recall('item_pkey');
SELECT sight_index_recall('item_v', 0);
SELECT sight_index_stats(1::oid);
SELECT sight_index_calibrate('item_v', ARRAY['[1,2]'::vector]);
SELECT sight_index_calibrate('item_v', ARRAY[NULL::vector]);
CREATE TABLE parted (id int, v vector(2)) PARTITION BY HASH (id);
CREATE INDEX parted_v ON parted USING faiss_ivf (v vector_l2_ops);
SELECT sight_index_stats('parted_v');
CREATE TABLE wrong (v vector);
INSERT INTO wrong VALUES ('[1,2]'), ('[1,2,3]');
CREATE INDEX CONCURRENTLY wrong_v ON wrong USING faiss_ivf ((v::vector(2)) vector_l2_ops);
SELECT sight_index_stats('wrong_v');
CREATE ROLE index_stranger;
-- whatever columns are called; nothing of an owner's runs for somebody else
CREATE TABLE odd (q vector(16), "Sample" int, d int);
INSERT INTO odd SELECT v, id, id FROM item;
CREATE INDEX "Odd index" ON odd USING faiss_ivf ((q::halfvec(16)) halfvec_l2_ops) WITH (lists = 16) WHERE d > 10;
SELECT sight_index_recall('"Odd index"', 5, 200) BETWEEN 0.85 AND 1 AS measured;
GRANT SELECT ON odd TO index_stranger;
SET ROLE index_stranger;
SELECT sight_index_recall('"Odd index"');
RESET ROLE;
-- not even for a superuser
ALTER TABLE odd OWNER TO index_stranger;
SELECT count(*) FROM sight_index_calibrate('"Odd index"');
SET ROLE index_stranger;
SELECT count(*) > 0 AS calibrated FROM sight_index_calibrate('"Odd index"');
RESET ROLE;
SET ROLE index_stranger;
SELECT lists FROM sight_index_stats('item_v');
SELECT sight_index_calibrate('item_v');
RESET ROLE;
GRANT pg_stat_scan_tables TO index_stranger;
SET ROLE index_stranger;
SELECT lists FROM sight_index_stats('item_v');
SELECT sight_index_calibrate('item_v');
RESET ROLE;
DROP OWNED BY index_stranger;
DROP ROLE index_stranger;
-- lists so tight that one has all rows near a row: what is searched for may lie between them
CREATE TABLE tight (id int PRIMARY KEY, v vector(16));
INSERT INTO tight SELECT i, ARRAY(SELECT ((i % 8 >> (d % 3)) & 1) * 10 + (i::bigint * d * d * 7919 % 997) / 9970.0 FROM generate_series(1, 16) AS d)::vector
    FROM generate_series(1, 4000) AS i;
CREATE INDEX tight_v ON tight USING faiss_ivf (v vector_l2_ops) WITH (lists = 8);
ANALYZE tight;
SELECT nprobe, mean_lists, recall_curve->0->'recall_at_10' AS of_one_list FROM sight_index_stats('tight_v');
SELECT count(*) FROM (SELECT id FROM tight ORDER BY v <-> array_fill(4, ARRAY[16])::vector LIMIT 5) s;
SELECT lists_probed FROM sight_index_last_scan();
SET faiss_ivf.nprobe = 1;
SELECT count(*) FROM (SELECT id FROM tight ORDER BY v <-> array_fill(4, ARRAY[16])::vector LIMIT 5) s;
SELECT lists_probed FROM sight_index_last_scan();
RESET faiss_ivf.nprobe;
DROP INDEX tight_v;
CREATE INDEX tight_v ON tight USING faiss_ivf (v vector_l2_ops) WITH (lists = 2);
SELECT nprobe, mean_lists FROM sight_index_stats('tight_v');
