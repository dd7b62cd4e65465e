#include "internal.h"

#include <algorithm>
#include <memory>

#include <faiss/impl/ProductQuantizer.h>
#include <faiss/impl/ScalarQuantizer.h>
#include <faiss/impl/code_distance/code_distance.h>
#include <faiss/impl/pq4_fast_scan.h>

namespace {

using Computer = faiss::ScalarQuantizer::SQDistanceComputer;

const faiss::Quantizer* as_faiss(const FaissIvfQuantizer* quantizer) {
    return reinterpret_cast<const faiss::Quantizer*>(quantizer);
}

FaissIvfQuantizer* from_faiss(faiss::Quantizer* quantizer) {
    return reinterpret_cast<FaissIvfQuantizer*>(quantizer);
}

faiss::ScalarQuantizer scalar_quantizer(int kind, size_t dim) {
    using Scalar = faiss::ScalarQuantizer;
    switch (kind) {
        case FAISS_IVF_SCALAR_8_BITS:
            return Scalar(dim, Scalar::QT_8bit);
        case FAISS_IVF_SCALAR_4_BITS:
            return Scalar(dim, Scalar::QT_4bit);
        default:
            return Scalar(dim, Scalar::QT_fp16);
    }
}

/// What a scalar quantizer encodes and decodes one vector with: by itself it would open a
/// region for threads, however few vectors there are. Nothing for other quantizers and
/// numbers of vectors.
std::unique_ptr<faiss::ScalarQuantizer::SQuantizer> for_single(
        const FaissIvfQuantizer* quantizer,
        size_t n) {
    auto scalar =
            dynamic_cast<const faiss::ScalarQuantizer*>(as_faiss(quantizer));
    return std::unique_ptr<faiss::ScalarQuantizer::SQuantizer>(
            scalar && n == 1 ? scalar->select_quantizer() : nullptr);
}

} // namespace

int faiss_ivf_scalar_train(
        int kind,
        size_t dim,
        const float* vectors,
        size_t n,
        float* trained,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        faiss::ScalarQuantizer quantizer = scalar_quantizer(kind, dim);
        quantizer.train(n, vectors);
        std::copy(quantizer.trained.begin(), quantizer.trained.end(), trained);
    });
}

int faiss_ivf_scalar_quantizer_new(
        int kind,
        size_t dim,
        const float* trained,
        size_t n_trained,
        FaissIvfQuantizer** quantizer,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto made = std::make_unique<faiss::ScalarQuantizer>(
                scalar_quantizer(kind, dim));
        made->trained.assign(trained, trained + n_trained);
        *quantizer = from_faiss(made.release());
    });
}

int faiss_ivf_product_quantizer_new(
        size_t dim,
        size_t m,
        size_t bits,
        const float* centroids,
        FaissIvfQuantizer** quantizer,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto made = std::make_unique<faiss::ProductQuantizer>(dim, m, bits);
        made->centroids.assign(centroids, centroids + dim * made->ksub);
        *quantizer = from_faiss(made.release());
    });
}

void faiss_ivf_quantizer_free(FaissIvfQuantizer* quantizer) {
    delete as_faiss(quantizer);
}

void faiss_ivf_quantizer_trained(
        const FaissIvfQuantizer* quantizer,
        const float** trained,
        size_t* n_trained) {
    auto product =
            dynamic_cast<const faiss::ProductQuantizer*>(as_faiss(quantizer));
    auto scalar =
            dynamic_cast<const faiss::ScalarQuantizer*>(as_faiss(quantizer));
    const auto& values = product ? product->centroids : scalar->trained;
    *trained = values.data();
    *n_trained = values.size();
}

int faiss_ivf_quantizer_encode(
        const FaissIvfQuantizer* quantizer,
        const float* vectors,
        size_t n,
        uint8_t* codes,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        if (auto single = for_single(quantizer, n)) {
            std::fill_n(codes, as_faiss(quantizer)->code_size, 0);
            single->encode_vector(vectors, codes);
        } else {
            as_faiss(quantizer)->compute_codes(vectors, codes, n);
        }
    });
}

int faiss_ivf_quantizer_decode(
        const FaissIvfQuantizer* quantizer,
        const uint8_t* codes,
        size_t n,
        float* vectors,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        if (auto single = for_single(quantizer, n)) {
            single->decode_vector(codes, vectors);
        } else {
            as_faiss(quantizer)->decode(codes, vectors, n);
        }
    });
}

int faiss_ivf_scalar_scorer_new(
        const FaissIvfQuantizer* quantizer,
        const float* query,
        FaissIvfScalarScorer** scorer,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto scalar =
                static_cast<const faiss::ScalarQuantizer*>(as_faiss(quantizer));
        Computer* computer =
                scalar->get_distance_computer(faiss::METRIC_INNER_PRODUCT);
        computer->set_query(query);
        *scorer = reinterpret_cast<FaissIvfScalarScorer*>(computer);
    });
}

void faiss_ivf_scalar_scorer_free(FaissIvfScalarScorer* scorer) {
    delete reinterpret_cast<Computer*>(scorer);
}

int faiss_ivf_scalar_scan(
        const FaissIvfScalarScorer* scorer,
        const uint8_t* codes,
        size_t code_size,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto computer = reinterpret_cast<const Computer*>(scorer);
        for (size_t i = 0; i < n; i++) {
            out[i] = computer->query_to_code(codes + i * code_size);
        }
    });
}

int faiss_ivf_product_tables(
        const FaissIvfQuantizer* quantizer,
        const float* query,
        float* tables,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        static_cast<const faiss::ProductQuantizer*>(as_faiss(quantizer))
                ->compute_inner_prod_table(query, tables);
    });
}

int faiss_ivf_product_scan(
        size_t m,
        const float* tables,
        const uint8_t* codes,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes) {
    using Decoder = faiss::PQDecoder8;
    return guarded(message, message_bytes, [&] {
        size_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const uint8_t* code = codes + i * m;
            faiss::distance_four_codes<Decoder>(
                    m,
                    Decoder::nbits,
                    tables,
                    code,
                    code + m,
                    code + 2 * m,
                    code + 3 * m,
                    out[i],
                    out[i + 1],
                    out[i + 2],
                    out[i + 3]);
        }
        for (; i < n; i++) {
            out[i] = faiss::distance_single_code<Decoder>(
                    m, Decoder::nbits, tables, codes + i * m);
        }
    });
}

int faiss_ivf_fast_scan(
        size_t n_tables,
        const uint8_t* tables,
        const uint8_t* codes,
        size_t n,
        uint16_t* sums,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        // For one query, pq4_pack_LUT copies its input as it is.
        faiss::accumulate_to_mem(1, n, int(n_tables), codes, tables, sums);
    });
}
