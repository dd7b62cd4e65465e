//! The devices that models compute on, and the threads of the CPU.

use candle_core::{Device, DeviceLocation};

use crate::error::{ErrorKind, ModelError};

/// Opens a device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`
/// or `cuda:N`.
///
/// Without the feature `cuda` of this crate, `auto` is the CPU and `cuda` an
/// error of kind [`ErrorKind::NotSupported`].
pub fn open_device(name: &str) -> Result<Device, ModelError> {
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

/// The name of an open device: `cpu` or `cuda:N`.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
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
        assert_eq!(device_name(&open_device("cpu").unwrap()), "cpu");
    }

    #[test]
    fn an_unknown_device_is_an_invalid_option() {
        for name in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            let error = open_device(name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidOption, "{name}");
            assert!(error.hint.is_some());
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_is_refused_where_it_was_not_built() {
        assert_eq!(device_name(&open_device("auto").unwrap()), "cpu");
        for name in ["cuda", "cuda:1"] {
            let error = open_device(name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported, "{name}");
        }
    }
}
