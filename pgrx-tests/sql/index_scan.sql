-- How scans go on: iterative scans, cursors, rescans, and which plans are chosen.
SET client_min_messages = warning;
CREATE TABLE point (id int PRIMARY KEY, grp int, v vector(2));
-- a grid of 40 x 40 points
INSERT INTO point SELECT x * 40 + y, x, ARRAY[x, y]::vector
    FROM generate_series(0, 39) x, generate_series(0, 39) y;
CREATE INDEX point_v ON point USING faiss_ivf (v vector_l2_ops) WITH (lists = 16);
ANALYZE point;
SET enable_seqscan = off;
SET enable_sort = off;
SET faiss_ivf.nprobe = 1;

-- off: only the rows of one list
SET faiss_ivf.iterative_scan = off;
SELECT count(*) BETWEEN 1 AND 400 AS some FROM (SELECT id FROM point ORDER BY v <-> '[5,5]') s;
-- relaxed order: all rows
SET faiss_ivf.iterative_scan = relaxed_order;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM point ORDER BY v <-> '[5,5]') s;
-- strict order: never a step back
SET faiss_ivf.iterative_scan = strict_order;
SELECT count(*) > 100 AS many, count(*) FILTER (WHERE d < previous) AS steps_back FROM
    (SELECT d, lag(d) OVER () AS previous FROM
        (SELECT v <-> '[5,5]' AS d FROM point ORDER BY v <-> '[5,5]' OFFSET 0) s) s;
-- a filter that the first list does not satisfy
SELECT count(*) FROM (SELECT id FROM point WHERE grp = 39 ORDER BY v <-> '[0,0]' LIMIT 10) s;
SET faiss_ivf.max_probes = 2;
SELECT count(*) FROM (SELECT id FROM point WHERE grp = 39 ORDER BY v <-> '[0,0]' LIMIT 10) s;
SET faiss_ivf.max_probes = 0;
SET faiss_ivf.nprobe = 16;

-- cursors, forward in pieces and again from the begin
BEGIN;
DECLARE c CURSOR FOR SELECT v <-> '[7,7]' AS d FROM point ORDER BY v <-> '[7,7]';
FETCH 1 FROM c;
FETCH 3 FROM c;
MOVE 1000 IN c;
FETCH 1 FROM c;
COMMIT;
BEGIN;
DECLARE s SCROLL CURSOR FOR SELECT v <-> '[7,7]' AS d FROM point ORDER BY v <-> '[7,7]';
FETCH 2 FROM s;
FETCH FIRST FROM s;
COMMIT;

-- rescans: each outer row asks anew
EXPLAIN (COSTS OFF) SELECT q.id, n.id FROM point q CROSS JOIN LATERAL
    (SELECT p.id FROM point p ORDER BY p.v <-> q.v LIMIT 1) n WHERE q.id < 50;
SELECT count(*) FROM point q CROSS JOIN LATERAL
    (SELECT p.id FROM point p ORDER BY p.v <-> q.v LIMIT 1) n WHERE q.id = n.id;
SELECT count(*) FROM point q CROSS JOIN LATERAL
    (SELECT p.id FROM point p WHERE p.id <> q.id ORDER BY p.v <-> q.v LIMIT 2) n WHERE q.id < 100;

-- rows that are changed while a cursor is open
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM point ORDER BY v <-> '[20,20]';
FETCH 1 FROM c;
DELETE FROM point WHERE grp = 20;
INSERT INTO point SELECT 5000 + i, 20, ARRAY[20, 20]::vector FROM generate_series(1, 500) i;
MOVE ALL IN c;
ROLLBACK;

-- the planner: an index scan for an order with a limit, never without an order
RESET enable_seqscan;
RESET enable_sort;
RESET faiss_ivf.nprobe;
INSERT INTO point SELECT 10000 + i, i % 40, ARRAY[i % 173, i % 179]::vector FROM generate_series(1, 30000) i;
ANALYZE point;
EXPLAIN (COSTS OFF) SELECT id FROM point ORDER BY v <-> '[1,1]' LIMIT 10;
EXPLAIN (COSTS OFF) SELECT count(*) FROM point;
EXPLAIN (COSTS OFF) SELECT id FROM point WHERE v <-> '[1,1]' < 3;
EXPLAIN (COSTS OFF) SELECT id FROM point WHERE id = 7 ORDER BY v <-> '[1,1]' LIMIT 10;
-- neither without an order nor for another operator, even where nothing else is enabled
CREATE FUNCTION uses_index(query text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN ' || query LOOP
        IF line LIKE '%point_v%' THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT uses_index('SELECT id FROM point ORDER BY v <-> ''[1,1]'' LIMIT 10') AS by_distance,
       uses_index('SELECT count(v) FROM point WHERE grp = 1') AS without_order,
       uses_index('SELECT id FROM point ORDER BY v <#> ''[1,1]'' LIMIT 10') AS by_another_operator;
-- equal distances can be ordered by a second one, but not by the index
SELECT uses_index('SELECT id FROM point ORDER BY v <-> ''[1,1]'', v <-> ''[2,2]'' LIMIT 10') AS by_two_distances;
SELECT v FROM point WHERE id < 1600 ORDER BY v <-> '[1,1]', v <-> '[2,1]' LIMIT 3;
-- scans are counted
SELECT pg_stat_force_next_flush();
SELECT idx_scan > 0 AS counted FROM pg_stat_user_indexes WHERE indexrelname = 'point_v';
