\echo Use "ALTER EXTENSION pg_sight UPDATE TO '0.2.0'" to load this file. \quit

-- Replaced and not made anew: what users have granted, and their views on it, stay.
CREATE OR REPLACE VIEW sight_stats AS
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
