-- Recall of the index against an exact scan of the table, as a session's queries would
-- have it: rows of the table are the queries. Ties count as found.
CREATE FUNCTION sight_index_recall(index regclass, k integer DEFAULT 10, samples integer DEFAULT 100)
    RETURNS double precision
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
    SET enable_seqscan = off
    SET enable_sort = off
    AS $$
DECLARE
    column_or_expression text := pg_catalog.pg_get_indexdef(index, 1, true);
    rows_of_index text;
    distance text;
    nearest text;
    plan text;
    recall double precision;
BEGIN
    IF k < 1 OR samples < 1 THEN
        RAISE EXCEPTION 'k and samples must be at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT pg_catalog.format('%s AS t WHERE (%s) IS NOT NULL%s', i.indrelid::pg_catalog.regclass, column_or_expression,
               ' AND (' || pg_catalog.pg_get_expr(i.indpred, i.indrelid, true) || ')'),
           pg_catalog.format('((%s) OPERATOR(%I.%s) q)', column_or_expression, n.nspname, o.oprname)
        INTO rows_of_index, distance
        FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'faiss_ivf'
            JOIN pg_catalog.pg_opclass AS oc ON oc.oid = i.indclass[0]
            JOIN pg_catalog.pg_amop AS a ON a.amopfamily = oc.opcfamily AND a.amopstrategy = 1
            JOIN pg_catalog.pg_operator AS o ON o.oid = a.amopopr
            JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE i.indexrelid = index AND c.relkind = 'i';
    IF NOT FOUND THEN
        RAISE EXCEPTION '"%" is not a faiss_ivf index', index USING ERRCODE = 'wrong_object_type';
    END IF;
    -- Adding 0 keeps the exact scan off the index.
    nearest := pg_catalog.format(
        'SELECT %s AS d FROM %s ORDER BY %s', distance, rows_of_index, distance);
    FOR plan IN EXECUTE 'EXPLAIN SELECT * FROM (SELECT (' || column_or_expression || ') AS q FROM ' || rows_of_index
            || ' LIMIT 1) AS s, LATERAL (' || nearest || ' LIMIT 10) AS found'
    LOOP
        EXIT WHEN plan LIKE '%Index Scan using '
            || (SELECT pg_catalog.quote_ident(relname) FROM pg_catalog.pg_class WHERE oid = index) || ' %';
        plan := NULL;
    END LOOP;
    IF plan IS NULL THEN
        RAISE EXCEPTION 'the planner does not scan index "%"', index
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Another index of the column may be preferred, or enable_indexscan be off.';
    END IF;
    EXECUTE pg_catalog.format(
        'WITH sample AS MATERIALIZED (SELECT (%1$s) AS q FROM %2$s ORDER BY pg_catalog.random() LIMIT %3$s)
         SELECT pg_catalog.avg(found.n::pg_catalog.float8 / exact.n) FROM sample,
             LATERAL (SELECT pg_catalog.count(*) AS n, pg_catalog.max(d) AS worst
                      FROM (%4$s + 0 LIMIT %5$s) AS s) AS exact,
             LATERAL (SELECT pg_catalog.count(*) AS n FROM (%4$s LIMIT %5$s) AS s WHERE d <= exact.worst) AS found',
        column_or_expression, rows_of_index, samples, nearest, k) INTO recall;
    RETURN recall;
END
$$;
COMMENT ON FUNCTION sight_index_recall(regclass, integer, integer) IS 'share of the k nearest rows that a search by the index finds, by the settings of the session';
COMMENT ON FUNCTION sight_index_stats(regclass) IS 'lists, entries, bytes and recall curve of a faiss_ivf index';
COMMENT ON FUNCTION sight_index_calibrate(regclass, vector[]) IS 'measures how many lists a search must read, for queries or for rows of the index, and keeps the result';
COMMENT ON FUNCTION sight_index_prewarm(regclass) IS 'reads a faiss_ivf index into the buffers; returns its pages';
COMMENT ON FUNCTION sight_index_last_scan() IS 'what the last scan of a faiss_ivf index in this session did';
