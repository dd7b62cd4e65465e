// Runs kernels of linear layers on a CPU, a thread for each of a block, and compares what they give
// with the formula. Shared memory, barriers and the units that multiply matrices are imitated, so
// this tells of indices and arithmetic, and nothing of alignment or speed.
//
//     run FORMAT BLOCKS WEIGHTS OUTPUTS INPUTS
//
// BLOCKS is a file of a weight in the format, q4k or q6k, WEIGHTS of the same as 32-bit floats.

#include <barrier>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "blocks.cuh"

thread_local Index threadIdx, blockIdx;
Index blockDim{256};

namespace {

constexpr int THREADS = 256;
std::barrier<> block_barrier(THREADS);
std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;

// What each lane puts into a product of matrices of 16 x 16 and 16 x 8 numbers.
struct Fragments {
    uint32_t a[4], b[2];
} fragments_of[THREADS / 32][32];

template <typename T> float number(uint32_t pair, int which) {
    T numbers[2];
    memcpy(numbers, &pair, 4);
    return float(numbers[which]);
}

// As mma.m16n8k16 has them: the lanes in groups of four, which have a row of the first matrix and a
// column of the second each, and two rows of two numbers of the product.
template <typename T> void imitated(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Fragments &own = fragments_of[warp][lane];
    memcpy(own.a, a, sizeof own.a);
    own.b[0] = b0;
    own.b[1] = b1;
    warp_barriers[warp]->arrive_and_wait();
    for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        for (int k = 0; k < 16; k++) {
            const Fragments &of_row = fragments_of[warp][row % 8 * 4 + k % 8 / 2];
            const Fragments &of_column = fragments_of[warp][column * 4 + k % 8 / 2];
            d[e] += number<T>(of_row.a[k / 8 * 2 + row / 8], k % 2) * number<T>(of_column.b[k / 8], k % 2);
        }
    }
    warp_barriers[warp]->arrive_and_wait();
}
template <> void multiply<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    imitated<__half>(d, a, b0, b1);
}
template <> void multiply<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    imitated<__nv_bfloat16>(d, a, b0, b1);
}

template <typename F> void launch(int blocks, F kernel) {
    for (int block = 0; block < blocks; block++) {
        std::vector<std::thread> threads;
        for (int thread = 0; thread < THREADS; thread++) {
            threads.emplace_back([=] {
                threadIdx.x = thread;
                blockIdx.x = block;
                kernel();
            });
        }
        for (std::thread &thread : threads) thread.join();
    }
}

// Numbers at an address that is a multiple of 16.
template <typename T> class Numbers {
  public:
    explicit Numbers(size_t count) : memory(count * sizeof(T) / sizeof(uint4) + 1) {}
    T *data() { return reinterpret_cast<T *>(memory.data()); }
    T &operator[](size_t at) { return data()[at]; }

  private:
    std::vector<uint4> memory;
};

struct Layer {
    std::vector<uint8_t> blocks;
    std::vector<float> weights;
    int outputs, inputs;
};

bool wrong = false;

void tell(const char *what, int rows, double error, double bound) {
    const bool near = error < bound;
    std::printf("%s of %d rows: %.1e%s\n", what, rows, error, near ? "" : ", WRONG");
    wrong |= !near;
}

// The largest difference from x W^T (+ bias, then ReLU, + residual), relative to the largest value.
template <typename T>
double error_of(Numbers<T> &x, Numbers<T> &out, const float *weights, const Layer &layer, int rows, Numbers<T> *ends) {
    double worst = 0, largest = 0;
    for (int row = 0; row < rows; row++) {
        for (int output = 0; output < layer.outputs; output++) {
            double sum = ends ? float((*ends)[output]) : 0;
            for (int k = 0; k < layer.inputs; k++)
                sum += double(float(x[size_t(row) * layer.inputs + k])) * weights[size_t(output) * layer.inputs + k];
            const size_t at = size_t(row) * layer.outputs + output;
            if (ends) sum = std::max(sum, 0.0) + float((*ends)[layer.outputs + at]);
            const double difference = std::abs(sum - float(out[at]));
            // Not a number is as far as can be.
            worst = difference <= worst ? worst : difference == difference ? difference : INFINITY;
            largest = std::max(largest, std::abs(sum));
        }
    }
    return worst / largest;
}

template <typename T> void fill(Numbers<T> &numbers, size_t count, float scale, unsigned seed) {
    std::mt19937 draw(seed);
    std::normal_distribution<float> normal;
    for (size_t at = 0; at < count; at++) numbers[at] = T(scale * normal(draw));
}

template <typename T, typename Q, int R> void test_products(const Layer &layer, int rows, double bound) {
    const int blocks = (layer.outputs + NARROW_OUTPUTS - 1) / NARROW_OUTPUTS;
    const size_t results = size_t(rows) * layer.outputs;
    Numbers<T> x(size_t(rows) * layer.inputs), out(results);
    fill(x, size_t(rows) * layer.inputs, 1, rows);
    fill(out, results, 100, 1);
    launch(blocks, [&] {
        narrow_blocks<T, Q, R>(x.data(), layer.blocks.data(), out.data(), rows, layer.inputs, layer.outputs);
    });
    tell("product with blocks", rows, error_of<T>(x, out, layer.weights.data(), layer, rows, nullptr), bound);
    // The same weights in full.
    if constexpr (R <= 4) {
        Numbers<T> whole(layer.weights.size()), ends(layer.outputs + results);
        std::vector<float> rounded;
        for (size_t at = 0; at < layer.weights.size(); at++) {
            whole[at] = T(layer.weights[at]);
            rounded.push_back(float(whole[at]));
        }
        fill(ends, layer.outputs + results, 1, 2);
        fill(out, results, 100, 3);
        launch(blocks, [&] {
            narrow<T, R>(x.data(), whole.data(), ends.data(), ends.data() + layer.outputs, out.data(), rows, layer.inputs,
                         layer.outputs, 3);
        });
        tell("layer", rows, error_of<T>(x, out, rounded.data(), layer, rows, &ends), bound);
    }
}

template <typename Q> void test(const Layer &layer) {
    Numbers<float> decoded(layer.weights.size());
    const unsigned groups = layer.weights.size() / 16;
    launch((groups + THREADS - 1) / THREADS, [&] { dequantize<float, Q>(layer.blocks.data(), decoded.data(), groups); });
    double worst = 0;
    for (size_t at = 0; at < layer.weights.size(); at++)
        worst = std::max(worst, double(std::abs(decoded[at] - layer.weights[at])));
    tell("decoded weights", layer.outputs, worst, 1e-6);
    test_products<__half, Q, 1>(layer, 5, 3e-3);
    test_products<__half, Q, 2>(layer, 16, 3e-3);
    test_products<__half, Q, 8>(layer, 61, 3e-3);
    test_products<__nv_bfloat16, Q, 4>(layer, 20, 2e-2);
    test_products<__nv_bfloat16, Q, 4>(layer, 32, 2e-2);
}

std::vector<char> read(const char *name) {
    std::ifstream file(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

} // namespace

void __syncthreads() { block_barrier.arrive_and_wait(); }

int main(int count, char **arguments) {
    if (count != 6) return 2;
    for (int warp = 0; warp < THREADS / 32; warp++) warp_barriers.push_back(std::make_unique<std::barrier<>>(32));
    const std::vector<char> blocks = read(arguments[2]), weights = read(arguments[3]);
    Layer layer{{blocks.begin(), blocks.end()}, std::vector<float>(weights.size() / 4), atoi(arguments[4]), atoi(arguments[5])};
    memcpy(layer.weights.data(), weights.data(), weights.size());
    if (layer.weights.size() != size_t(layer.outputs) * layer.inputs) return 2;
    std::string(arguments[1]) == "q4k" ? test<Q4K>(layer) : test<Q6K>(layer);
    return wrong ? 1 : 0;
}
