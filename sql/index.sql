CREATE ACCESS METHOD faiss_ivf TYPE INDEX HANDLER faiss_ivf_handler;

COMMENT ON ACCESS METHOD faiss_ivf IS
    'inverted lists of vectors, computed with FAISS and stored in pages';

CREATE OPERATOR CLASS vector_l2_ops
    FOR TYPE vector USING faiss_ivf AS
    OPERATOR 1 <-> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_vector_l2(internal);

CREATE OPERATOR CLASS vector_ip_ops
    FOR TYPE vector USING faiss_ivf AS
    OPERATOR 1 <#> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_vector_ip(internal);

CREATE OPERATOR CLASS vector_cosine_ops
    FOR TYPE vector USING faiss_ivf AS
    OPERATOR 1 <=> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_vector_cosine(internal);

CREATE OPERATOR CLASS halfvec_l2_ops
    FOR TYPE halfvec USING faiss_ivf AS
    OPERATOR 1 <-> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_halfvec_l2(internal);

CREATE OPERATOR CLASS halfvec_ip_ops
    FOR TYPE halfvec USING faiss_ivf AS
    OPERATOR 1 <#> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_halfvec_ip(internal);

CREATE OPERATOR CLASS halfvec_cosine_ops
    FOR TYPE halfvec USING faiss_ivf AS
    OPERATOR 1 <=> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
    FUNCTION 1 faiss_ivf_halfvec_cosine(internal);
