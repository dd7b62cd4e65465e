-- The demo database: extension, models, table and trigger.
-- psql's variables captioner and encoder name the folders of the two models.

CREATE EXTENSION pg_sight CASCADE;

SELECT * FROM sight_model_register('demo-captioner', :'captioner');
SELECT * FROM sight_model_register('all-MiniLM-L6-v2', :'encoder');

ALTER DATABASE :"DBNAME" SET pg_sight.describe_model = 'demo-captioner';
ALTER DATABASE :"DBNAME" SET pg_sight.embed_model = 'all-MiniLM-L6-v2';

-- all-MiniLM-L6-v2 makes vectors of 384 dimensions.
CREATE TABLE product (
    id bigserial PRIMARY KEY,
    image bytea,
    description text,
    desc_vec vector(384),
    category text,
    colour text,
    price numeric(10, 2)
);

CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image ON product
    FOR EACH ROW EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec');
