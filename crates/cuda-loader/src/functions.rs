//! The functions by their libraries.

use std::ffi::c_void;
use std::sync::atomic::AtomicPtr;

use super::{Function, Library, absent};

macro_rules! libraries {
    ($($title:literal in $($file:literal),* { $($function:ident)+ })+) => {
        #[allow(non_upper_case_globals)]
        mod addresses {
            use super::{AtomicPtr, absent, c_void};
            $($(pub(super) static $function: AtomicPtr<c_void> =
                AtomicPtr::new(absent as extern "C" fn() -> i32 as *mut c_void);)+)+
        }

        #[allow(non_snake_case)]
        mod jumps {
            $($(
                // SAFETY: the name is that of the function to which it jumps, with all its
                // arguments where the caller has put them.
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                pub(super) unsafe extern "C" fn $function() {
                    core::arch::naked_asm!(
                        "jmp qword ptr [rip + {}]",
                        sym super::addresses::$function,
                    )
                }
            )+)+
        }

        pub(super) static LIBRARIES: &[Library] = &[$(Library {
            title: $title,
            files: &[$($file),*],
            functions: &[$(Function {
                name: {
                    const NAME: &str = concat!(stringify!($function), "\0");
                    match std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("a name of a function holds a zero"),
                    }
                },
                address: &addresses::$function,
                _jump: jumps::$function,
            }),+],
        }),+];
    };
}

libraries! {
    "The library of NVIDIA's driver" in c"libcuda.so.1" {
        cuCtxCreate_v4
        cuCtxDestroy_v2
        cuCtxGetCacheConfig
        cuCtxGetCurrent
        cuCtxGetLimit
        cuCtxGetStreamPriorityRange
        cuCtxSetCacheConfig
        cuCtxSetCurrent
        cuCtxSetFlags
        cuCtxSetLimit
        cuCtxSynchronize
        cuDestroyExternalMemory
        cuDeviceGet
        cuDeviceGetAttribute
        cuDeviceGetCount
        cuDeviceGetDefaultMemPool
        cuDeviceGetMemPool
        cuDeviceGetName
        cuDeviceGetUuid_v2
        cuDevicePrimaryCtxRelease_v2
        cuDevicePrimaryCtxRetain
        cuDeviceSetMemPool
        cuDeviceTotalMem_v2
        cuEventCreate
        cuEventDestroy_v2
        cuEventElapsedTime_v2
        cuEventQuery
        cuEventRecord
        cuEventSynchronize
        cuExternalMemoryGetMappedBuffer
        cuFuncGetAttribute
        cuFuncSetAttribute
        cuFuncSetCacheConfig
        cuGetErrorName
        cuGetErrorString
        cuGraphClone
        cuGraphDestroy
        cuGraphExecDestroy
        cuGraphInstantiateWithFlags
        cuGraphLaunch
        cuGraphUpload
        cuImportExternalMemory
        cuInit
        cuLaunchCooperativeKernel
        cuLaunchHostFunc
        cuLaunchKernel
        cuMemAdvise_v2
        cuMemAllocAsync
        cuMemAllocFromPoolAsync
        cuMemAllocManaged
        cuMemAlloc_v2
        cuMemFreeAsync
        cuMemFreeHost
        cuMemFree_v2
        cuMemGetInfo_v2
        cuMemHostAlloc
        cuMemPoolCreate
        cuMemPoolDestroy
        cuMemPoolGetAttribute
        cuMemPoolSetAttribute
        cuMemPoolTrimTo
        cuMemPrefetchAsync_v2
        cuMemcpyDtoDAsync_v2
        cuMemcpyDtoD_v2
        cuMemcpyDtoHAsync_v2
        cuMemcpyDtoH_v2
        cuMemcpyHtoDAsync_v2
        cuMemcpyHtoD_v2
        cuMemcpyPeerAsync
        cuMemsetD8Async
        cuMemsetD8_v2
        cuModuleGetFunction
        cuModuleGetGlobal_v2
        cuModuleLoad
        cuModuleLoadData
        cuModuleUnload
        cuOccupancyAvailableDynamicSMemPerBlock
        cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
        cuOccupancyMaxActiveClusters
        cuOccupancyMaxPotentialBlockSize
        cuOccupancyMaxPotentialBlockSizeWithFlags
        cuOccupancyMaxPotentialClusterSize
        cuProfilerStart
        cuProfilerStop
        cuStreamAttachMemAsync
        cuStreamBeginCapture_v2
        cuStreamCreate
        cuStreamCreateWithPriority
        cuStreamDestroy_v2
        cuStreamEndCapture
        cuStreamIsCapturing
        cuStreamSynchronize
        cuStreamWaitEvent
    }
    "CUDA's library cuBLAS" in c"libcublas.so.13", c"libcublas.so.12" {
        cublasCreate_v2
        cublasDasum_v2
        cublasDestroy_v2
        cublasDgemmStridedBatched
        cublasDgemm_v2
        cublasDgemv_v2
        cublasGemmEx
        cublasGemmGroupedBatchedEx
        cublasGemmStridedBatchedEx
        cublasGetPointerMode_v2
        cublasSasum_v2
        cublasSetPointerMode_v2
        cublasSetStream_v2
        cublasSgemmStridedBatched
        cublasSgemm_v2
        cublasSgemv_v2
    }
    // Called by candle's kernels for quantized weights, which are linked but never used here.
    "CUDA's runtime library" in {
        __cudaGetKernel
        __cudaLaunchKernel
        __cudaLaunchKernel_ptsz
        __cudaPopCallConfiguration
        __cudaPushCallConfiguration
        __cudaRegisterFatBinary
        __cudaRegisterFatBinaryEnd
        __cudaRegisterFunction
        __cudaRegisterVar
        __cudaUnregisterFatBinary
        cudaDeviceGetAttribute
        cudaFree
        cudaFreeAsync
        cudaFreeAsync_ptsz
        cudaFuncGetAttributes
        cudaFuncSetAttribute
        cudaGetDevice
        cudaGetDeviceCount
        cudaGetErrorName
        cudaGetErrorString
        cudaGetLastError
        cudaMalloc
        cudaMallocAsync
        cudaMallocAsync_ptsz
        cudaMemsetAsync
        cudaMemsetAsync_ptsz
        cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
        cudaPeekAtLastError
        cudaSetDevice
        cudaStreamSynchronize
        cudaStreamSynchronize_ptsz
    }
    "CUDA's library cuRAND" in c"libcurand.so.10" {
        curandCreateGenerator
        curandDestroyGenerator
        curandGenerate
        curandGenerateLogNormal
        curandGenerateLogNormalDouble
        curandGenerateLongLong
        curandGenerateNormal
        curandGenerateNormalDouble
        curandGeneratePoisson
        curandGenerateUniform
        curandGenerateUniformDouble
        curandSetGeneratorOffset
        curandSetPseudoRandomGeneratorSeed
        curandSetStream
    }
}
