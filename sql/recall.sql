-- Recall of the index against an exact scan of the table, as a session's queries would
-- have it: rows of the table are the queries, and no row is looked for by itself. Ties
-- count as found. Operators are named with their schema, and what an owner has written
-- into an index runs only for that owner: the caller may have more rights.
CREATE FUNCTION sight_index_recall(index regclass, k integer DEFAULT 10, samples integer DEFAULT 100)
    RETURNS double precision
    LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
    SET enable_sort = off
    AS $$
DECLARE
    vector_of_row text := pg_get_indexdef(index, 1, true);
    index_name text := (SELECT relname FROM pg_class WHERE oid = index);
    rows_of_index text;
    distance text;
    nearest text;
    plan text;
    recall double precision;
BEGIN
    IF k < 1 OR samples < 1 THEN
        RAISE EXCEPTION 'k and samples must be at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT format('ONLY %s AS sight_row WHERE (%s) IS NOT NULL%s', i.indrelid::regclass, vector_of_row,
                  ' AND (' || pg_get_expr(i.indpred, i.indrelid, true) || ')'),
           format('((%s) OPERATOR(%I.%s) sight_query.sight_vector)', vector_of_row, n.nspname, o.oprname)
        INTO rows_of_index, distance
        FROM pg_index AS i
            JOIN pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_am AS m ON m.oid = c.relam AND m.amname = 'faiss_ivf'
            JOIN pg_opclass AS oc ON oc.oid = i.indclass[0]
            JOIN pg_amop AS a ON a.amopfamily = oc.opcfamily AND a.amopstrategy = 1
            JOIN pg_operator AS o ON o.oid = a.amopopr
            JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE i.indexrelid = index AND c.relkind = 'i';
    IF NOT FOUND THEN
        RAISE EXCEPTION '"%" is not a faiss_ivf index', index_name USING ERRCODE = 'wrong_object_type';
    END IF;
    PERFORM FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indexrelid = index AND c.relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
            AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL);
    IF FOUND THEN
        RAISE EXCEPTION 'must be owner of index "%"', index_name
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = 'Its expressions and its predicate are code of its owner.',
                  HINT = 'Use SET ROLE to become the owner.';
    END IF;
    nearest := format('SELECT %s AS d FROM %s AND sight_row.ctid <> sight_query.sight_row_id ORDER BY %1$s',
                      distance, rows_of_index);
    FOR plan IN EXECUTE format(
        'EXPLAIN SELECT FROM (SELECT (%s) AS sight_vector, sight_row.ctid AS sight_row_id FROM %s LIMIT 1) AS sight_query,
             LATERAL (%s LIMIT 10) AS found', vector_of_row, rows_of_index, nearest)
    LOOP
        EXIT WHEN plan LIKE '%Index Scan using '
            || quote_ident(index_name) || ' %';
        plan := NULL;
    END LOOP;
    IF plan IS NULL THEN
        RAISE EXCEPTION 'the planner does not scan index "%"', index_name
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Another index of the column may be preferred, or enable_indexscan be off.';
    END IF;
    -- Adding 0 keeps the exact scan off the index.
    EXECUTE format(
        'WITH sight_query AS MATERIALIZED (
             SELECT (%1$s) AS sight_vector, sight_row.ctid AS sight_row_id FROM %2$s ORDER BY random() LIMIT %3$s)
         SELECT avg(found.n::float8 / exact.n::float8) FROM sight_query,
             LATERAL (SELECT count(*) AS n, max(d) AS worst FROM (%4$s + 0.0::float8 LIMIT %5$s) AS s) AS exact,
             LATERAL (SELECT count(*) AS n FROM (%4$s LIMIT %5$s) AS s WHERE d <= exact.worst) AS found
         WHERE exact.n > 0',
        vector_of_row, rows_of_index, samples, nearest, k) INTO recall;
    RETURN recall;
END
$$;
COMMENT ON FUNCTION sight_index_recall(regclass, integer, integer) IS 'share of the k nearest rows that a search by the index finds, by the settings of the session';
COMMENT ON FUNCTION sight_index_stats(regclass) IS 'lists, entries, bytes and recall curve of a faiss_ivf index';
COMMENT ON FUNCTION sight_index_calibrate(regclass, vector[]) IS 'measures how many lists a search must read, for queries or for rows of the index, and keeps the result';
COMMENT ON FUNCTION sight_index_prewarm(regclass) IS 'reads a faiss_ivf index into the buffers; returns its pages';
COMMENT ON FUNCTION sight_index_last_scan() IS 'what the last scan of a faiss_ivf index in this session did';
