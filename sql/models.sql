-- The role that manages models. Roles belong to the whole cluster: another
-- database's extension may have created it.
DO $$
BEGIN
    CREATE ROLE sight_admin NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- Column order matters: the extension reads name and directory by position.
CREATE TABLE sight_model (
    name text PRIMARY KEY CHECK (name <> ''),
    directory text NOT NULL,
    task text NOT NULL CHECK (task IN ('embed', 'describe')),
    architecture text NOT NULL,
    dimensions integer,
    parameters bigint NOT NULL,
    -- Where a pulled model came from: owner/name at the hub, and its commit.
    repository text,
    commit text,
    registered_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((repository IS NULL) = (commit IS NULL))
);
COMMENT ON TABLE sight_model IS 'registered models; managed by sight_model_register, sight_model_pull and sight_model_remove';
REVOKE ALL ON sight_model FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('sight_model', '');

-- What the files of a model say, after the server has checked them.
CREATE FUNCTION sight_model_inspect(name text, directory text) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_model_inspect';
REVOKE ALL ON FUNCTION sight_model_inspect(text, text) FROM PUBLIC;

-- Runs as the extension's owner, since only that may write the table; who may
-- call it is decided by the grant below.
CREATE FUNCTION sight_model_register(
    name text,
    directory text,
    OUT task text,
    OUT architecture text,
    OUT dimensions integer,
    OUT parameters bigint
)
    LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO @extschema@.sight_model AS m (name, directory, task, architecture, dimensions, parameters)
    SELECT $1, $2, i.task, i.architecture, i.dimensions, i.parameters
    FROM pg_catalog.jsonb_to_record(@extschema@.sight_model_inspect($1, $2))
        AS i (task text, architecture text, dimensions integer, parameters bigint)
    ON CONFLICT (name) DO UPDATE SET
        directory = excluded.directory,
        task = excluded.task,
        architecture = excluded.architecture,
        dimensions = excluded.dimensions,
        parameters = excluded.parameters,
        repository = excluded.repository,
        commit = excluded.commit,
        registered_at = excluded.registered_at
    RETURNING m.task, m.architecture, m.dimensions, m.parameters
$$;
COMMENT ON FUNCTION sight_model_register(text, text) IS 'registers a model directory under a name, after checking its files; registering a name again replaces it';
REVOKE ALL ON FUNCTION sight_model_register(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_model_register(text, text) TO sight_admin;

-- Downloads a model into the hub's cache on the database's host.
CREATE FUNCTION sight_model_fetch(repository text, revision text, name text) RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_model_fetch';
REVOKE ALL ON FUNCTION sight_model_fetch(text, text, text) FROM PUBLIC;

CREATE FUNCTION sight_model_pull(
    repository text,
    revision text DEFAULT 'main',
    name text DEFAULT NULL,
    OUT model text,
    OUT commit text,
    OUT task text,
    OUT architecture text,
    OUT dimensions integer,
    OUT parameters bigint
)
    LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO @extschema@.sight_model AS m
        (name, directory, task, architecture, dimensions, parameters, repository, commit)
    SELECT n.name, i.directory, i.task, i.architecture, i.dimensions, i.parameters, $1, i.commit
    FROM (SELECT coalesce($3, pg_catalog.regexp_replace($1, '^.*/', '')) AS name) AS n
    CROSS JOIN LATERAL pg_catalog.jsonb_to_record(@extschema@.sight_model_fetch($1, $2, n.name))
        AS i (directory text, commit text, task text, architecture text, dimensions integer, parameters bigint)
    ON CONFLICT (name) DO UPDATE SET
        directory = excluded.directory,
        task = excluded.task,
        architecture = excluded.architecture,
        dimensions = excluded.dimensions,
        parameters = excluded.parameters,
        repository = excluded.repository,
        commit = excluded.commit,
        registered_at = excluded.registered_at
    RETURNING m.name, m.commit, m.task, m.architecture, m.dimensions, m.parameters
$$;
COMMENT ON FUNCTION sight_model_pull(text, text, text) IS 'downloads a model from the hub and registers it, by default under its name there';
REVOKE ALL ON FUNCTION sight_model_pull(text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_model_pull(text, text, text) TO sight_admin;

-- The downloads that run, without starting the server.
CREATE FUNCTION sight_pull_progress() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_pull_progress';
REVOKE ALL ON FUNCTION sight_pull_progress() FROM PUBLIC;

CREATE VIEW sight_stat_progress_pull AS
SELECT p.*
FROM pg_catalog.jsonb_to_recordset(sight_pull_progress()) AS p (
    pid integer, repository text, revision text, phase text, current_file text,
    files_done integer, files_total integer, bytes_done bigint, bytes_total bigint
);
COMMENT ON VIEW sight_stat_progress_pull IS 'the running downloads of models, one row each';
GRANT EXECUTE ON FUNCTION sight_pull_progress() TO sight_admin, pg_monitor;
GRANT SELECT ON sight_stat_progress_pull TO sight_admin, pg_monitor;

CREATE FUNCTION sight_model_load(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_model_load';
COMMENT ON FUNCTION sight_model_load(text) IS 'loads a model ahead of its first use';
REVOKE ALL ON FUNCTION sight_model_load(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_model_load(text) TO sight_admin;

CREATE FUNCTION sight_model_unload(name text) RETURNS void
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_model_unload';
COMMENT ON FUNCTION sight_model_unload(text) IS 'frees the memory of a model; its next use loads it again';
REVOKE ALL ON FUNCTION sight_model_unload(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_model_unload(text) TO sight_admin;

CREATE FUNCTION sight_model_remove(name text) RETURNS boolean
    LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    WITH removed AS (DELETE FROM @extschema@.sight_model m WHERE m.name = $1 RETURNING 1)
    SELECT EXISTS (SELECT FROM removed)
$$;
COMMENT ON FUNCTION sight_model_remove(text) IS 'forgets a registered model, whose files stay; false if there was none of that name';
REVOKE ALL ON FUNCTION sight_model_remove(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_model_remove(text) TO sight_admin;

-- A model that no name stands for any more leaves the server's memory, once that is
-- committed. A failure of that is none of the statement.
CREATE FUNCTION sight_model_release(directory text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_model_release';
REVOKE ALL ON FUNCTION sight_model_release(text) FROM PUBLIC;

CREATE FUNCTION sight_model_replaced() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM @extschema@.sight_model m WHERE m.directory = OLD.directory) THEN
        PERFORM @extschema@.sight_model_release(OLD.directory);
    END IF;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION sight_model_replaced() FROM PUBLIC;
CREATE CONSTRAINT TRIGGER replaced AFTER UPDATE OF directory OR DELETE ON sight_model
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sight_model_replaced();

-- State of the server without starting it.
CREATE FUNCTION sight_server_state() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_server_state';
REVOKE ALL ON FUNCTION sight_server_state() FROM PUBLIC;

-- The same for everyone: models by their names and not by their directories.
CREATE FUNCTION sight_server_info() RETURNS jsonb
    LANGUAGE sql VOLATILE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT state - 'loaded_models' || pg_catalog.jsonb_build_object(
        'loaded_models', pg_catalog.jsonb_array_length(state -> 'loaded_models'),
        'model_memory_bytes', (
            SELECT pg_catalog.sum((l ->> 'memory_bytes')::bigint)
            FROM pg_catalog.jsonb_array_elements(state -> 'loaded_models') AS l),
        'loaded', (
            SELECT pg_catalog.jsonb_object_agg(m.name, l - 'directory')
            FROM pg_catalog.jsonb_array_elements(state -> 'loaded_models') AS l
            JOIN @extschema@.sight_model m ON m.directory = l ->> 'directory'))
    FROM @extschema@.sight_server_state() AS state
$$;

CREATE VIEW sight_server_status AS
SELECT
    s.pid,
    s.state,
    s.version,
    s.device,
    s.dtype,
    s.threads,
    s.memory_bytes,
    s.device_memory_used_bytes,
    s.device_memory_bytes,
    s.uptime_ms * interval '1 millisecond' AS uptime,
    s.requests,
    s.failed_requests,
    s.queued_requests,
    s.loaded_models,
    s.model_memory_bytes,
    s.cached_embeddings,
    s.cache_bytes,
    s.restarts,
    s.last_error
FROM pg_catalog.jsonb_to_record(sight_server_info()) AS s (
    pid integer, state text, version text, device text, dtype text, threads integer, memory_bytes bigint,
    device_memory_used_bytes bigint, device_memory_bytes bigint,
    uptime_ms double precision, requests bigint, failed_requests bigint, queued_requests bigint,
    loaded_models integer, model_memory_bytes bigint, cached_embeddings bigint, cache_bytes bigint,
    restarts integer, last_error text
);
COMMENT ON VIEW sight_server_status IS 'the model server of this cluster; one row, also when it does not run';

CREATE VIEW sight_models AS
SELECT
    m.name,
    m.task,
    m.architecture,
    m.dimensions,
    m.parameters,
    -- Only those who manage models see where they lie.
    CASE WHEN pg_catalog.pg_has_role('sight_admin', 'MEMBER') THEN m.directory END AS directory,
    m.repository,
    m.commit,
    coalesce(s.loaded ? m.name, false) AS loaded,
    (s.loaded -> m.name ->> 'memory_bytes')::bigint AS memory_bytes,
    pg_catalog.clock_timestamp()
        - (s.loaded -> m.name ->> 'unused_ms')::double precision * interval '1 millisecond' AS last_used,
    m.registered_at
FROM sight_model m
CROSS JOIN (SELECT sight_server_info() -> 'loaded' AS loaded) AS s;
COMMENT ON VIEW sight_models IS 'the registered models, and which of them the server holds in memory';
GRANT SELECT ON sight_server_status, sight_models TO PUBLIC;

-- The work of the server by model and task, without starting it.
CREATE FUNCTION sight_statistics() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_statistics';
REVOKE ALL ON FUNCTION sight_statistics() FROM PUBLIC;

-- New columns go to the end, where an upgrade can add them to the view that is there.
CREATE VIEW sight_stats AS
SELECT
    s.model,
    s.task,
    s.requests,
    s.failed,
    s.cancelled,
    s.rejected,
    s.items,
    s.cache_hits,
    s.batches,
    s.batch_items,
    s.largest_batch,
    s.oom_splits,
    s.queue_time,
    s.preprocess_time,
    s.compute_time,
    s.loads,
    s.load_time,
    pg_catalog.to_timestamp(s.since_ms / 1000) AS stats_reset,
    s.generated_tokens
FROM pg_catalog.jsonb_to_recordset(sight_statistics()) AS s (
    model text, task text, requests bigint, failed bigint, cancelled bigint, rejected bigint, items bigint,
    cache_hits bigint, batches bigint, batch_items bigint, largest_batch bigint, oom_splits bigint,
    queue_time double precision, preprocess_time double precision, compute_time double precision,
    loads bigint, load_time double precision, since_ms double precision, generated_tokens bigint
);
COMMENT ON VIEW sight_stats IS 'what the model server has done, by model and task; times in milliseconds';
GRANT EXECUTE ON FUNCTION sight_statistics() TO sight_admin, pg_monitor;
GRANT SELECT ON sight_stats TO sight_admin, pg_monitor;

CREATE FUNCTION sight_stats_reset() RETURNS void
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'sight_stats_reset';
COMMENT ON FUNCTION sight_stats_reset() IS 'sets the statistics of the model server to zero';
REVOKE ALL ON FUNCTION sight_stats_reset() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sight_stats_reset() TO sight_admin;
