-- Search beyond one vector: by meaning and words together, and with filters; each with its plan.
--
--     make psql <examples/search.sql
--
-- The table: product (id, description, desc_vec, category, colour, price), as in the demo.

CREATE INDEX IF NOT EXISTS product_desc_vec_idx ON product USING faiss_ivf (desc_vec vector_ip_ops);
CREATE INDEX IF NOT EXISTS product_words_idx ON product USING gin (to_tsvector('english', description));
CREATE INDEX IF NOT EXISTS product_category_price_idx ON product (category, price);
ANALYZE product;

-- How many lists a search must read for its recall, the index has learnt from the table's own rows.
-- What people type is shorter and lies elsewhere: measure with searches. Here they are made of
-- colours, patterns and categories, three hundred of them in no order; take those that your users
-- have made. And where there are few lists, as in a small table, to ask for more recall costs little.
SELECT * FROM sight_index_calibrate('product_desc_vec_idx', (
    SELECT embed_batch(array_agg(search))
    FROM (SELECT concat_ws(' ', colour, pattern, category || 's') AS search
          FROM (SELECT DISTINCT colour, category FROM product) AS kinds,
               unnest(ARRAY[NULL, 'striped', 'dotted', 'checked']) AS pattern
          ORDER BY md5(concat_ws(' ', colour, pattern, category)) LIMIT 300) AS searches));
SET faiss_ivf.target_recall = 0.99;


-- Hybrid search ---------------------------------------------------------------------------------

-- Both searches give their first 40, and a row gets 1 / (60 + its place) from each that found it
-- (reciprocal rank fusion): no weights to tune between distances and ranks, which have no common
-- scale. Neither index knows of the other, and each is used.
PREPARE hybrid(text) AS
WITH nearest AS (
    SELECT id, row_number() OVER (ORDER BY distance, id) AS place
    FROM (SELECT id, desc_vec <#> embed($1) AS distance
          FROM product
          ORDER BY desc_vec <#> embed($1)
          LIMIT 40) AS by_vector
), matching AS (
    SELECT id, row_number() OVER (ORDER BY rank DESC, id) AS place
    FROM (SELECT id, ts_rank_cd(to_tsvector('english', description), websearch_to_tsquery('english', $1)) AS rank
          FROM product
          WHERE to_tsvector('english', description) @@ websearch_to_tsquery('english', $1)
          ORDER BY rank DESC, id
          LIMIT 40) AS by_words
), fused AS (
    SELECT id, sum(1.0 / (60 + place)) AS score
    FROM (TABLE nearest UNION ALL TABLE matching) AS places
    GROUP BY id
    ORDER BY score DESC, id
    LIMIT 10
)
SELECT id, description, round(fused.score, 5) AS score
FROM fused JOIN product USING (id)
ORDER BY fused.score DESC, id;

EXECUTE hybrid('red striped sneakers');
EXPLAIN (COSTS OFF) EXECUTE hybrid('red striped sneakers');


-- Filtered search -------------------------------------------------------------------------------

-- A filter that many rows pass: the index gives rows in the order of their distances, those that do
-- not pass are thrown away, and the scan goes on to further lists until ten have passed. In strict
-- order it leaves out rows of later lists that are nearer than what it has given already; with a
-- filter these may be most of those that pass. So take them as they come, and sort the ten: by
-- distance + 0, for PostgreSQL believes them to be sorted by distance.
SET faiss_ivf.iterative_scan = relaxed_order;

PREPARE affordable(text, numeric) AS
WITH found AS MATERIALIZED (
    SELECT id, description, price, desc_vec <#> embed($1) AS distance
    FROM product
    WHERE price <= $2
    ORDER BY desc_vec <#> embed($1)
    LIMIT 10
)
SELECT id, description, price FROM found ORDER BY distance + 0;

EXECUTE affordable('red striped sneakers', 60);
EXPLAIN (COSTS OFF) EXECUTE affordable('red striped sneakers', 60);

RESET faiss_ivf.iterative_scan;

-- A filter that few rows pass: with the vector computed once, by a subquery, the planner sees that
-- an ordinary index on the filter's columns and a sort are cheaper. That answer is exact.
PREPARE narrow(text, text, numeric) AS
SELECT id, description, price
FROM product
WHERE category = $2 AND price <= $3
ORDER BY desc_vec <#> (SELECT embed($1)), id
LIMIT 10;

EXECUTE narrow('red striped', 'sneaker', 60);
EXPLAIN (COSTS OFF) EXECUTE narrow('red striped', 'sneaker', 60);

-- A filter that comes again and again: a partial index, which holds nothing else, for queries with
-- the same condition. (Where they are as few as in the demo, the planner keeps to the ordinary one.)
CREATE INDEX IF NOT EXISTS product_sneaker_idx ON product USING faiss_ivf (desc_vec vector_ip_ops)
    WHERE category = 'sneaker';

PREPARE sneakers(text) AS
SELECT id, description, price
FROM product
WHERE category = 'sneaker'
ORDER BY desc_vec <#> embed($1)
LIMIT 10;

EXECUTE sneakers('red striped');
EXPLAIN (COSTS OFF) EXECUTE sneakers('red striped');
