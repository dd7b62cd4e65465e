-- After the pictures are in: the index learns its lists from the vectors.

CREATE INDEX product_desc_vec_idx ON product USING faiss_ivf (desc_vec vector_ip_ops);
-- Full text, for hybrid search.
CREATE INDEX product_words_idx ON product USING gin (to_tsvector('english', description));
ANALYZE product;
