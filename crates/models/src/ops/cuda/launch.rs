//! A device made ready, and the launching of kernels on it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, result,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor};

/// What build.rs made of kernels.cu.
const KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The kernels of one device.
struct Kernels {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<(Name, DType), CudaFunction>>,
}

/// A kernel, but for the type of its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Plain(&'static str),
    /// One for each of several sizes.
    Sized(&'static str, usize),
}

impl Name {
    /// As kernels.cu has it.
    fn of(self, dtype: DType) -> Result<String> {
        let dtype = match dtype {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            other => candle_core::bail!("no kernel computes with {other:?}"),
        };
        Ok(match self {
            Self::Plain(name) => format!("{name}_{dtype}"),
            Self::Sized(name, size) => format!("{name}_{dtype}_{size}"),
        })
    }
}

impl Kernels {
    fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static ALL: OnceLock<Mutex<HashMap<DeviceId, Arc<Kernels>>>> = OnceLock::new();
        let mut all = lock(ALL.get_or_init(Mutex::default));
        if let Some(kernels) = all.get(&device.id()) {
            return Ok(Arc::clone(kernels));
        }
        let stream = device.cuda_stream();
        let code = Ptx::from_binary(KERNELS.to_vec());
        let kernels = Arc::new(Self {
            module: stream.context().load_module(code).w()?,
            functions: Mutex::default(),
        });
        all.insert(device.id(), Arc::clone(&kernels));
        Ok(kernels)
    }

    fn function(&self, name: Name, dtype: DType) -> Result<CudaFunction> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(&(name, dtype)) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(&name.of(dtype)?).w()?;
        functions.insert((name, dtype), function.clone());
        Ok(function)
    }
}

/// Finds the libraries of driver and toolkit, before anything else of them is called.
pub(crate) fn load() -> Result<()> {
    cuda_loader::load().map_err(candle_core::Error::msg)
}

/// Makes a device ready: keeps its freed memory for the next use, and sees that it runs
/// the kernels. The device must have been opened with a stream of its own.
pub(crate) fn prepare(device: &Device) -> Result<()> {
    let device = device.as_cuda_device()?;
    // SAFETY: everything on this device goes through its one stream, so that what is freed or
    // overwritten there is so after all that was launched before.
    unsafe { device.disable_event_tracking() };
    let pool = pool(device)?;
    let mut keep = u64::MAX;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a 64-bit number, which lives until the call returns.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast::<c_void>()) }
        .w()?;
    Kernels::of(device).map(drop)
}

/// Gives memory that nothing uses back to the system.
pub(crate) fn trim(device: &Device) -> Result<()> {
    let device = device.as_cuda_device()?;
    let stream = device.cuda_stream();
    // What was freed is free when the stream has come so far.
    stream.synchronize().w()?;
    // SAFETY: the pool is the device's own, which lives as long as the process.
    unsafe { result::mem_pool::trim_to(pool(device)?, 0) }.w()
}

/// What this process has of a device's memory to allocate from, in bytes.
#[cfg(test)]
pub(crate) fn reserved(device: &Device) -> Result<u64> {
    let mut bytes = 0_u64;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
    let pool = pool(device.as_cuda_device()?)?;
    // SAFETY: this attribute is a 64-bit number, which lives until the call returns.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast::<c_void>()) }
        .w()?;
    Ok(bytes)
}

fn pool(
    device: &CudaDevice,
) -> Result<candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the number is that of a device which is open.
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }.w()
}

/// Used and all memory of a device, in bytes; of all processes.
pub(crate) fn memory(device: &Device) -> Result<(u64, u64)> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let (free, total) = stream.context().mem_get_info().w()?;
    Ok((total.saturating_sub(free) as u64, total as u64))
}

/// Whether kernels may compute with a tensor, as far as device and type go.
pub(super) fn on_device(tensor: &Tensor) -> bool {
    let known = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
    tensor.device().is_cuda() && known && tensor.elem_count() > 0
}

/// A tensor to be written as a whole.
///
/// # Safety
/// The next use of the tensor is by a kernel that writes every element and reads none before.
pub(super) unsafe fn uninitialised(
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    // SAFETY: as of this function.
    unsafe { Tensor::empty(shape, dtype, device) }
}

#[derive(Clone, Copy)]
enum Argument {
    Pointer(u64),
    Int(i32),
    Unsigned(u32),
    Float(f32),
}

/// A kernel with its arguments, in the order of kernels.cu.
pub(super) struct Launch {
    device: CudaDevice,
    dtype: DType,
    function: CudaFunction,
    arguments: Vec<Argument>,
}

impl Launch {
    /// For numbers of the type of `sample`, on its device.
    pub(super) fn new(sample: &Tensor, name: Name) -> Result<Self> {
        let (device, dtype) = (sample.device().as_cuda_device()?.clone(), sample.dtype());
        let function = Kernels::of(&device)?.function(name, dtype)?;
        Ok(Self {
            device,
            dtype,
            function,
            arguments: Vec::with_capacity(12),
        })
    }

    /// Where the first element of a contiguous tensor is, of the type of the sample.
    pub(super) fn tensor(self, tensor: &Tensor) -> Result<Self> {
        let dtype = self.dtype;
        self.contiguous(tensor, dtype)
    }

    /// The same, or null.
    pub(super) fn optional(mut self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => {
                self.arguments.push(Argument::Pointer(0));
                Ok(self)
            }
        }
    }

    /// The same of 32-bit floats, whatever the type of the sample.
    pub(super) fn floats(self, tensor: &Tensor) -> Result<Self> {
        self.contiguous(tensor, DType::F32)
    }

    /// The same of 32-bit numbers without a sign.
    pub(super) fn table(self, tensor: &Tensor) -> Result<Self> {
        self.contiguous(tensor, DType::U32)
    }

    /// The same of bytes.
    pub(super) fn bytes(self, tensor: &Tensor) -> Result<Self> {
        self.contiguous(tensor, DType::U8)
    }

    /// Where the first element of a tensor is, of the type of the sample, however the others lie.
    pub(super) fn strided(self, tensor: &Tensor) -> Result<Self> {
        let dtype = self.dtype;
        self.pointer(tensor, dtype)
    }

    fn contiguous(self, tensor: &Tensor, dtype: DType) -> Result<Self> {
        if !tensor.is_contiguous() {
            candle_core::bail!(
                "a kernel got {:?}, which is not contiguous",
                tensor.layout()
            )
        }
        self.pointer(tensor, dtype)
    }

    fn pointer(mut self, tensor: &Tensor, dtype: DType) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("a kernel of a device got a tensor that is not there")
        };
        if storage.device.id() != self.device.id() {
            candle_core::bail!("a kernel of a device got a tensor of another")
        }
        if tensor.dtype() != dtype {
            candle_core::bail!("a kernel got {:?} in place of {dtype:?}", tensor.dtype())
        }
        let offset = layout.start_offset() * dtype.size_in_bytes();
        let address = address(storage)? + offset as u64;
        self.arguments.push(Argument::Pointer(address));
        Ok(self)
    }

    /// A size; kernels compute with those of 31 bits.
    pub(super) fn int(mut self, value: usize) -> Result<Self> {
        let value = i32::try_from(value).map_err(candle_core::Error::wrap)?;
        self.arguments.push(Argument::Int(value));
        Ok(self)
    }

    pub(super) fn unsigned(mut self, value: u32) -> Self {
        self.arguments.push(Argument::Unsigned(value));
        self
    }

    pub(super) fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Float(value));
        self
    }

    /// Launches it: blocks in two dimensions, threads of each, bytes of shared memory.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in its order and of its types, and the tensors
    /// have the shapes and alignments that it says it takes; what it writes is used by nothing
    /// else.
    pub(super) unsafe fn run(
        self,
        blocks: (usize, usize),
        threads: u32,
        shared: usize,
    ) -> Result<()> {
        let grid = |size: usize| u32::try_from(size).map_err(candle_core::Error::wrap);
        let config = LaunchConfig {
            grid_dim: (grid(blocks.0)?, grid(blocks.1)?, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: grid(shared)?,
        };
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&self.function);
        for argument in &self.arguments {
            match argument {
                Argument::Pointer(value) => builder.arg(value),
                Argument::Int(value) => builder.arg(value),
                Argument::Unsigned(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        // SAFETY: as of this function; and what is freed after this is freed on the same
        // stream, so after the kernel.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

fn address(storage: &CudaStorage) -> Result<u64> {
    fn of<T>(slice: &CudaSlice<T>, device: &CudaDevice) -> u64 {
        slice.device_ptr(&device.cuda_stream()).0
    }
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => of(slice, &storage.device),
        CudaStorageSlice::F16(slice) => of(slice, &storage.device),
        CudaStorageSlice::BF16(slice) => of(slice, &storage.device),
        CudaStorageSlice::U32(slice) => of(slice, &storage.device),
        CudaStorageSlice::U8(slice) => of(slice, &storage.device),
        _ => candle_core::bail!("no kernel takes tensors of this type"),
    })
}

/// Locks; a panic of another holder leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
