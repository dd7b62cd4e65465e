-- STABLE: an index scan needs an ORDER BY operand that is not volatile, and
-- IMMUTABLE would fold a model's answer into plans that outlive the model.
-- COST is in units of an operator call; a forward pass takes milliseconds.

CREATE FUNCTION embed(text text, model text DEFAULT NULL, prompt_name text DEFAULT NULL) RETURNS vector
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 AS 'MODULE_PATHNAME', 'sight_embed';
COMMENT ON FUNCTION embed(text, text, text) IS 'embedding of a text by a registered model, by default pg_sight.embed_model';

CREATE FUNCTION embed_batch(texts text[], model text DEFAULT NULL, prompt_name text DEFAULT NULL) RETURNS vector[]
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'sight_embed_batch';
COMMENT ON FUNCTION embed_batch(text[], text, text) IS 'embeddings of several texts in one batch, in their order';

CREATE FUNCTION blip_describe(
    image bytea, prompt text DEFAULT NULL, model text DEFAULT NULL, options jsonb DEFAULT NULL
) RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'sight_describe';
COMMENT ON FUNCTION blip_describe(bytea, text, text, jsonb) IS 'description of a picture by a registered model, by default pg_sight.describe_model';

CREATE FUNCTION blip_describe(
    image bytea, prompts text[], model text DEFAULT NULL, options jsonb DEFAULT NULL
) RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE COST 200000 AS 'MODULE_PATHNAME', 'sight_describe_prompts';
COMMENT ON FUNCTION blip_describe(bytea, text[], text, jsonb) IS 'description of a picture for each of several prompts, joined by spaces';

CREATE FUNCTION blip_describe_batch(
    images bytea[], prompt text DEFAULT NULL, model text DEFAULT NULL, options jsonb DEFAULT NULL
) RETURNS text[]
    LANGUAGE c STABLE PARALLEL SAFE COST 1000000 AS 'MODULE_PATHNAME', 'sight_describe_batch';
COMMENT ON FUNCTION blip_describe_batch(bytea[], text, text, jsonb) IS 'descriptions of several pictures in one batch, in their order';

CREATE FUNCTION sight_describe_trigger() RETURNS trigger
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'sight_describe_trigger';
COMMENT ON FUNCTION sight_describe_trigger() IS 'row trigger that describes and embeds: arguments are the columns of the image, the description and the vector';
