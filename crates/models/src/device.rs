//! The devices that models compute on, and the threads of the CPU.

use candle_core::{DType, Device, DeviceLocation};

use crate::error::{ErrorKind, ModelError};

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
        let device = open_device(device)?;
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

    /// The name of the type of numbers, as PyTorch has it.
    pub fn dtype_name(&self) -> &'static str {
        match self.dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        }
    }
}

fn open_device(name: &str) -> Result<Device, ModelError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        "auto" => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
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
    Device::new_cuda(ordinal).map_err(|error| {
        ModelError::new(
            ErrorKind::Internal,
            format!("could not open device \"cuda:{ordinal}\""),
        )
        .with_detail(error.to_string())
        .with_hint("Check with nvidia-smi that the device exists and that its driver works.")
    })
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
