//! The devices that models compute on, and the threads of the CPU.

use candle_core::{DType, Device, DeviceLocation};

use crate::error::{ErrorKind, ModelError};
use crate::ops::cuda;

/// Where a model computes, and with which type of numbers.
#[derive(Debug, Clone)]
pub struct Placement {
    pub device: Device,
    pub dtype: DType,
}

impl Default for Placement {
    /// 32-bit floats on the CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
        }
    }
}

impl Placement {
    /// Opens a device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`
    /// or `cuda:N`; with the numbers `float32`, `float16`, `bfloat16` or `auto`,
    /// which is `bfloat16` on CUDA devices.
    ///
    /// On the CPU numbers are `float32`. Without the feature `cuda` of this crate,
    /// `auto` is the CPU and `cuda` an error of kind [`ErrorKind::NotSupported`].
    pub fn open(device: &str, dtype: &str) -> Result<Self, ModelError> {
        Self::open_telling(device, dtype, |_| ())
    }

    /// The same; `fell_back` is told why `auto` is the CPU though the program was built for
    /// CUDA devices. A data type that the CPU does not have is then still an error.
    pub fn open_telling(
        device: &str,
        dtype: &str,
        fell_back: impl FnOnce(&ModelError),
    ) -> Result<Self, ModelError> {
        let device = open_device(device, fell_back)?;
        let dtype = match (dtype, device.is_cpu()) {
            ("auto" | "float32", true) | ("float32", false) => DType::F32,
            ("float16", false) => DType::F16,
            ("auto" | "bfloat16", false) => DType::BF16,
            ("float16" | "bfloat16", true) => {
                return Err(ModelError::new(
                    ErrorKind::NotSupported,
                    format!("data type \"{dtype}\" is not supported on the CPU"),
                )
                .with_hint("Use the data type \"auto\" or \"float32\"."));
            }
            _ => {
                return Err(ModelError::new(
                    ErrorKind::InvalidOption,
                    format!("invalid data type \"{dtype}\""),
                )
                .with_hint("Valid data types are auto, float32, float16 and bfloat16."));
            }
        };
        Ok(Self { device, dtype })
    }

    /// The name of the device: `cpu` or `cuda:N`.
    pub fn device_name(&self) -> String {
        match self.device.location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    /// The memory of a CUDA device, which all programs share that use it; `None` for the CPU,
    /// and where the device does not tell.
    pub fn memory(&self) -> Option<DeviceMemory> {
        if self.device.is_cpu() {
            return None;
        }
        let (used_bytes, total_bytes) = cuda::memory(&self.device).ok()?;
        Some(DeviceMemory {
            used_bytes,
            total_bytes,
        })
    }

    /// The name of the type of numbers, as PyTorch has it.
    pub fn dtype_name(&self) -> &'static str {
        match self.dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        }
    }
}

/// How much of a device's memory is used, by all programs, and how much there is; in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub used_bytes: u64,
    pub total_bytes: u64,
}

/// Dropped after the weights of a model it gives their memory back, which the device would
/// else keep for this process.
#[derive(Debug)]
pub(crate) struct GivesMemoryBack(Device);

impl GivesMemoryBack {
    pub(crate) fn to(device: &Device) -> Self {
        Self(device.clone())
    }
}

impl Drop for GivesMemoryBack {
    fn drop(&mut self) {
        if !self.0.is_cpu() {
            // A device that has failed gives nothing back before the process ends.
            let _ = cuda::trim(&self.0);
        }
    }
}

fn open_device(name: &str, fell_back: impl FnOnce(&ModelError)) -> Result<Device, ModelError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        "auto" => Ok(open_cuda(0).unwrap_or_else(|error| {
            fell_back(&error);
            Device::Cpu
        })),
        "cuda" => open_cuda(0),
        _ => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => open_cuda(ordinal),
            Some(Err(_)) | None => Err(ModelError::new(
                ErrorKind::InvalidOption,
                format!("invalid device name \"{name}\""),
            )
            .with_hint("Valid devices are auto, cpu, cuda and cuda:N, N being a number.")),
        },
    }
}

fn open_cuda(ordinal: usize) -> Result<Device, ModelError> {
    if !cfg!(feature = "cuda") {
        return Err(ModelError::new(
            ErrorKind::NotSupported,
            format!("device \"cuda:{ordinal}\" is not supported"),
        )
        .with_detail("This model server was built without CUDA.")
        .with_hint("Use the device \"cpu\", or install a model server built with CUDA."));
    }
    // One stream for all threads. Without one of its own a device would have one for each
    // thread, and a thread could read what another has not computed yet.
    let open = || {
        cuda::load()?;
        let device = Device::new_cuda_with_stream(ordinal)?;
        cuda::prepare(&device)?;
        Ok(device)
    };
    open().map_err(|error: candle_core::Error| {
        ModelError::new(
            ErrorKind::Internal,
            format!("could not open device \"cuda:{ordinal}\""),
        )
        .with_detail(why(&error.to_string()))
        .with_hint("Check with nvidia-smi that the device exists and that its driver works.")
    })
}

/// Errors of CUDA at the opening of a device, in words.
const REASONS: [(&str, &str); 5] = [
    (
        "CUDA_ERROR_NO_DEVICE",
        "There is no NVIDIA GPU that this process may use",
    ),
    (
        "CUDA_ERROR_INVALID_DEVICE",
        "There is no GPU of this number",
    ),
    (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "The driver in the kernel and its library are of different versions",
    ),
    (
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "The GPU is older than those that this program was built for",
    ),
    (
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "The driver is older than the CUDA version that this program was built with",
    ),
];

/// What an error of CUDA means, and its own text, without the backtrace that may follow.
fn why(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default().trim();
    let known = REASONS.iter().find(|(name, _)| text.contains(name));
    match known {
        Some((_, words)) => format!("{words} ({text})."),
        None => text.to_owned(),
    }
}

/// Sets how many threads of the CPU compute, for the whole process.
///
/// It must be called before the first model is loaded: the threads start once.
/// Without it there are as many as processors, or as the environment variable
/// `RAYON_NUM_THREADS` says.
pub fn set_threads(threads: usize) -> Result<(), ModelError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("compute {index}"))
        .build_global()
        .map_err(|error| {
            ModelError::new(
                ErrorKind::Internal,
                "could not set the number of compute threads",
            )
            .with_detail(error.to_string())
        })
}

/// Runs work that computes on a device: for the CPU as [`compute`] does, and else right
/// here, where it only tells the device what to do.
pub(crate) fn compute_on<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    if device.is_cpu() {
        compute(work)
    } else {
        work()
    }
}

/// Runs work on one of the threads that compute, so that its operations are
/// shared with the others without waking the caller after each.
pub(crate) fn compute<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_opens_under_its_name() {
        for dtype in ["auto", "float32"] {
            let place = Placement::open("cpu", dtype).unwrap();
            assert_eq!(
                (place.device_name().as_str(), place.dtype_name()),
                ("cpu", "float32")
            );
        }
    }

    #[test]
    fn unknown_names_are_invalid_options() {
        for (device, dtype) in [
            ("", "auto"),
            ("gpu", "auto"),
            ("cuda:", "auto"),
            ("cuda:x", "auto"),
            ("CPU", "auto"),
            ("cpu", ""),
            ("cpu", "f32"),
        ] {
            let error = Placement::open(device, dtype).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidOption, "{device} {dtype}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn short_floats_are_refused_on_the_cpu() {
        for dtype in ["float16", "bfloat16"] {
            let error = Placement::open("cpu", dtype).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported);
            assert!(error.message.contains(dtype) && error.hint.is_some());
        }
    }

    #[test]
    fn reasons_are_given_in_words() {
        let text = "DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")";
        let said = why(text);
        assert!(said.starts_with("There is no NVIDIA GPU") && said.contains(text));
        assert_eq!(why("something else\n   0: main"), "something else");
    }

    /// With a GPU or without one, `auto` opens something, and says why where that is the CPU
    /// of a program that was built for GPUs.
    #[test]
    fn auto_falls_back_to_the_cpu_and_says_why() {
        let mut reason = None;
        let tell = |error: &ModelError| reason = Some(error.clone());
        let place = Placement::open_telling("auto", "auto", tell).unwrap();
        let on_cpu = place.device.is_cpu();
        assert_eq!(reason.is_some(), cfg!(feature = "cuda") && on_cpu);
        assert_eq!(place.memory().is_some(), !on_cpu);
        if let Some(reason) = reason {
            assert!(reason.detail.is_some() && reason.hint.is_some());
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_is_refused_where_it_was_not_built() {
        assert_eq!(
            Placement::open("auto", "auto").unwrap().device_name(),
            "cpu"
        );
        for name in ["cuda", "cuda:1"] {
            let error = Placement::open(name, "auto").unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported, "{name}");
        }
    }
}
