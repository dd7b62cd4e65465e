/// What the files of the shim share.

#pragma once

#include "shim.h"

#include <cstdio>
#include <exception>
#include <new>

/// Runs `work` and turns what it throws into a status and a message.
template <typename Work>
static int guarded(char* message, size_t message_bytes, Work work) noexcept {
    try {
        work();
        return FAISS_IVF_OK;
    } catch (const std::bad_alloc&) {
        return FAISS_IVF_OUT_OF_MEMORY;
    } catch (const std::exception& e) {
        std::snprintf(message, message_bytes, "%s", e.what());
    } catch (...) {
        std::snprintf(message, message_bytes, "unknown exception");
    }
    return FAISS_IVF_FAILED;
}
