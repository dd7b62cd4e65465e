-- Describes and embeds the rows of a table that have no description or no vector yet.
--
--     psql -d shop -f examples/describe.sql
--     psql -d shop -v table=product -v batch=1 -v model=instructblip-vicuna-7b -f examples/describe.sql
--
-- It is, in steps,
--
--     UPDATE picture SET description = blip_describe(image, ARRAY['...', '...'], options => '{...}')
--     WHERE description IS NULL;
--
-- Each batch is a transaction: cut off at any moment and started again, it goes on. Several
-- sessions may run it at once: they share the rows, and the model server makes batches of what
-- they ask for, as a GPU wants them. A picture that cannot be described is named in a warning and
-- left as it is; a failure of the model server ends the script. The table needs an integer column
-- id, and image, description and desc_vec; examples/load.py makes such a one.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table}
\else
    \set table picture
\endif
-- With fewer, less is lost when the script is cut off.
\if :{?batch}
\else
    \set batch 8
\endif
-- Empty is the setting pg_sight.describe_model.
\if :{?model}
\else
    \set model ''
\endif
-- A description is the answers to all prompts.
\if :{?prompts}
\else
    \set prompts '{"describe this image in full detail","create an extensive description of this image"}'
\endif
\if :{?options}
\else
    \set options '{"num_beams": 10, "max_length": 512, "min_length": 16, "repetition_penalty": 1.5, "do_sample": false}'
\endif

-- The next rows after an id for which a condition holds, locked; those that another session
-- works on are left to it. NULL when there are none.
CREATE OR REPLACE FUNCTION pg_temp.next_rows(target regclass, condition text, after bigint, batch integer)
RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
BEGIN
    EXECUTE format(
        'SELECT array_agg(id ORDER BY id) FROM (
             SELECT id FROM %s WHERE id > $1 AND %s ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
         ) AS next', target, condition)
    INTO ids USING after, batch;
    RETURN ids;
END
$$;

-- Row by row, as all prompts for a picture go to the model together and it is read once for them.
-- A picture that is none, or is too large, fails alone.
CREATE OR REPLACE PROCEDURE pg_temp.describe_rows(
    target regclass, ids bigint[], prompts text[], model text, options jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    row_id bigint;
BEGIN
    FOREACH row_id IN ARRAY ids LOOP
        BEGIN
            EXECUTE format(
                'UPDATE %s SET description = blip_describe(image, $2, $3, $4) WHERE id = $1', target)
            USING row_id, prompts, model, options;
        EXCEPTION WHEN SQLSTATE 'PS020' OR SQLSTATE 'PS021' THEN
            RAISE WARNING 'row % is left without a description: %', row_id, SQLERRM;
        END;
    END LOOP;
END
$$;

-- In one batch, with the prompt for documents where the model has one, as the trigger does.
CREATE OR REPLACE PROCEDURE pg_temp.embed_rows(target regclass, ids bigint[])
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'UPDATE %1$s AS p SET desc_vec = a.v
         FROM (SELECT array_agg(id ORDER BY id) AS ids,
                      embed_batch(array_agg(description ORDER BY id), prompt_name => ''document'') AS vs
               FROM %1$s WHERE id = ANY ($1)) AS b,
              unnest(b.ids, b.vs) AS a (id, v)
         WHERE p.id = a.id', target)
    USING ids;
END
$$;

CREATE OR REPLACE PROCEDURE pg_temp.report(what text, done bigint, total bigint, started timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    seconds double precision := greatest(extract(epoch FROM clock_timestamp() - started), 0.001);
BEGIN
    RAISE INFO '% % of %, % a second', what, done, total, round((done / seconds)::numeric, 1);
END
$$;

-- Describes first, then embeds all that has a description, also one that somebody wrote.
CREATE OR REPLACE PROCEDURE pg_temp.describe(
    target regclass, batch integer, prompts text[], model text, options jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    wanting text;
    what text;
    total bigint;
    done bigint;
    last bigint;
    ids bigint[];
    started timestamptz;
    reported timestamptz;
BEGIN
    FOREACH what IN ARRAY ARRAY['described', 'embedded'] LOOP
        wanting := CASE what
            WHEN 'described' THEN 'description IS NULL AND image IS NOT NULL'
            ELSE 'description IS NOT NULL AND desc_vec IS NULL' END;
        EXECUTE format('SELECT count(*) FROM %s WHERE %s', target, wanting) INTO total;
        started := clock_timestamp();
        reported := started;
        done := 0;
        last := -9223372036854775808;
        LOOP
            -- Texts are so much less work than pictures.
            ids := pg_temp.next_rows(target, wanting, last, CASE what WHEN 'described' THEN batch ELSE 128 END);
            EXIT WHEN ids IS NULL;
            IF what = 'described' THEN
                CALL pg_temp.describe_rows(target, ids, prompts, model, options);
            ELSE
                CALL pg_temp.embed_rows(target, ids);
            END IF;
            COMMIT;
            done := done + cardinality(ids);
            last := ids[cardinality(ids)];
            IF clock_timestamp() > reported + interval '5 seconds' THEN
                reported := clock_timestamp();
                CALL pg_temp.report(what, done, total, started);
            END IF;
        END LOOP;
        CALL pg_temp.report(what, done, total, started);
    END LOOP;
END
$$;

CALL pg_temp.describe(:'table', :batch, :'prompts', nullif(:'model', ''), :'options');
