-- Which plan the planner takes: the index where it is the faster one, and where it is not,
-- a sequential scan or another index with a sort.
SET client_min_messages = warning;
SET max_parallel_workers_per_gather = 0;
CREATE TABLE item (id int PRIMARY KEY, half int, tenth int, hundredth int, rare int, v vector(64));
INSERT INTO item SELECT i, i % 2, i % 10, i % 100, i % 5000, ARRAY(
    SELECT ((i % 211) * d % 17 + (i::bigint * 7919 * d * d) % 4099 / 2000.0)::real FROM generate_series(1, 64) AS d)::vector
    FROM generate_series(1, 30000) AS i;
CREATE INDEX ON item (hundredth);
CREATE INDEX ON item (rare);
CREATE INDEX item_v ON item USING faiss_ivf (v vector_l2_ops) WITH (lists = 100);
VACUUM ANALYZE item;
-- how a query orders its rows
CREATE FUNCTION way(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    line text;
    ways text[] := '{}';
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        ways := ways || substring(line FROM '(Index Scan using \w+|Seq Scan|Bitmap Heap Scan|Sort$)');
    END LOOP;
    RETURN array_to_string(ways, ', ');
END
$$;
CREATE FUNCTION nearest(condition text, amount text) RETURNS text LANGUAGE sql AS $$
    SELECT format('SELECT id FROM item %s ORDER BY v <-> %L %s', condition, array_fill(5, ARRAY[64])::vector, amount)
$$;
-- few rows of many
SELECT amount, way(nearest('', 'LIMIT ' || amount)) FROM unnest(ARRAY[1, 10, 100, 1000]) AS amount;
-- a condition that many rows satisfy
SELECT condition, way(nearest('WHERE ' || condition, 'LIMIT 10'))
    FROM unnest(ARRAY['half = 1', 'tenth = 3', 'half = 1 AND tenth = 3', 'id < 20000']) AS condition;
-- a condition that few rows satisfy: those, and a sort
SELECT condition, way(nearest('WHERE ' || condition, 'LIMIT 10'))
    FROM unnest(ARRAY['hundredth = 3', 'rare = 3', 'id = 5', 'id < 100']) AS condition;
-- nearly all rows, or all
SELECT amount, way(nearest('', amount)) FROM unnest(ARRAY['LIMIT 20000', 'LIMIT ALL', 'OFFSET 25000']) AS amount;
SELECT way(nearest('WHERE tenth = 3', ''));
-- what costs depend on: the start does not change with the LIMIT, the whole does
CREATE FUNCTION costs(query text) RETURNS numeric[] LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT json) ' || query INTO plan;
    RETURN ARRAY[plan->0->'Plan'->>'Startup Cost', plan->0->'Plan'->>'Total Cost'];
END
$$;
SET enable_seqscan = off;
SET enable_sort = off;
SET enable_bitmapscan = off;
CREATE TEMP TABLE cost AS SELECT condition, amount, (costs(nearest(condition, amount)))[1] AS start, (costs(nearest(condition, amount)))[2] AS whole
    FROM unnest(ARRAY['', 'WHERE half = 1', 'WHERE hundredth = 3']) AS condition, unnest(ARRAY['LIMIT 10', 'LIMIT 100', '']) AS amount;
SELECT count(DISTINCT start) AS starts FROM cost WHERE condition = '';
SELECT a.condition, b.whole > a.whole AS more_for_more, c.whole > b.whole AS most_for_all FROM cost a JOIN cost b USING (condition) JOIN cost c USING (condition)
    WHERE a.amount = 'LIMIT 10' AND b.amount = 'LIMIT 100' AND c.amount = '' ORDER BY 1;
SELECT a.amount, b.whole > a.whole AS more_for_half, c.whole > 5 * b.whole AS most_for_hundredth
    FROM cost a JOIN cost b USING (amount) JOIN cost c USING (amount)
    WHERE a.condition = '' AND b.condition = 'WHERE half = 1' AND c.condition = 'WHERE hundredth = 3' AND amount = 'LIMIT 10';
-- the more lists are read first, the higher is the start
SET faiss_ivf.nprobe = 50;
SELECT (costs(nearest('', 'LIMIT 10')))[1] > 3 * min(start) AS more_for_half_of_the_lists FROM cost;
RESET faiss_ivf.nprobe;
-- a scan that ends after its first lists costs what they cost
SET faiss_ivf.iterative_scan = off;
SELECT (costs(nearest('', '')))[2] < (SELECT whole FROM cost WHERE condition = '' AND amount = '') AS first_lists_only;
SET faiss_ivf.iterative_scan = strict_order;
SET faiss_ivf.max_scan_tuples = 2000;
SELECT (costs(nearest('', '')))[2] < (SELECT whole FROM cost WHERE condition = '' AND amount = '') AS bounded;
RESET faiss_ivf.max_scan_tuples;
RESET faiss_ivf.iterative_scan;
RESET enable_seqscan;
RESET enable_sort;
RESET enable_bitmapscan;
-- vectors out of line, which a sequential scan is not charged for
CREATE TABLE wide (id int PRIMARY KEY, v vector(768));
INSERT INTO wide SELECT i, ARRAY(SELECT ((i * 31 + d * 7) % 101 + i % 13)::real FROM generate_series(1, 768) AS d)::vector
    FROM generate_series(1, 4000) AS i;
CREATE INDEX wide_v ON wide USING faiss_ivf (v vector_l2_ops) WITH (lists = 20);
VACUUM ANALYZE wide;
SELECT pg_relation_size('wide_v') > 5 * pg_relation_size('wide') AS out_of_line;
SELECT way(format('SELECT id FROM wide ORDER BY v <-> %L LIMIT 10', array_fill(1, ARRAY[768])::vector)) AS ten,
    way(format('SELECT id FROM wide WHERE id < 20 ORDER BY v <-> %L LIMIT 10', array_fill(1, ARRAY[768])::vector)) AS ten_of_twenty;
-- a table so small that reading it is nothing
CREATE TABLE small AS SELECT * FROM item LIMIT 50;
CREATE INDEX small_v ON small USING faiss_ivf (v vector_l2_ops);
ANALYZE small;
SELECT way(format('SELECT id FROM small ORDER BY v <-> %L LIMIT 10', array_fill(1, ARRAY[64])::vector)) AS small;
-- for each row of another table
SELECT way('SELECT a.id, b.id FROM (SELECT * FROM item WHERE rare = 3) AS a CROSS JOIN LATERAL
    (SELECT id FROM item ORDER BY v <-> a.v LIMIT 3) AS b') AS lateral_limit;
-- partitions, whose orders are merged
CREATE TABLE part (id int, v vector(64)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (1) TO (15001);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (15001) TO (30001);
INSERT INTO part SELECT id, v FROM item;
CREATE INDEX part_v ON part USING faiss_ivf (v vector_l2_ops) WITH (lists = 50);
VACUUM ANALYZE part;
SELECT way(format('SELECT id FROM part ORDER BY v <-> %L LIMIT 10', array_fill(1, ARRAY[64])::vector)) AS merged,
    way(format('SELECT id FROM part WHERE id < 100 ORDER BY v <-> %L LIMIT 10', array_fill(1, ARRAY[64])::vector)) AS pruned;
-- what a strict scan leaves out of a filter's rows is little
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SELECT count(*) FROM (SELECT id FROM item WHERE tenth = 3 ORDER BY v <-> array_fill(5, ARRAY[64])::vector LIMIT 300) AS s;
SELECT count(*) FROM (SELECT id FROM item WHERE hundredth = 3 ORDER BY v <-> array_fill(5, ARRAY[64])::vector LIMIT 100) AS s;
SELECT count(*) > 28000 AS nearly_all FROM (SELECT id FROM item ORDER BY v <-> array_fill(5, ARRAY[64])::vector) AS s;
SELECT rows_returned + rows_left_out AS rows, entries_scanned FROM sight_index_last_scan();
SET faiss_ivf.iterative_scan = relaxed_order;
SELECT count(*) AS all_rows FROM (SELECT id FROM item ORDER BY v <-> array_fill(5, ARRAY[64])::vector) AS s;
