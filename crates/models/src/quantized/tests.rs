use std::collections::HashMap;
use std::sync::Mutex;

use super::file::{UNFINISHED_NAME, is_at};
use super::*;
use crate::checkpoint::TensorSpec;
use crate::files::ModelDirectory;

const INPUTS: usize = 512;

/// A model of two layers with inputs that fill blocks, and one without.
struct Model {
    folder: tempfile::TempDir,
    log: Mutex<Vec<String>>,
}

/// Reproducible values between -1 and 1.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn layers() -> [ProjectionSpec; 3] {
    [
        ProjectionSpec::new("m.", &[("q", 70), ("k", 3)], INPUTS),
        ProjectionSpec::new("m.", &[("narrow", 5)], 100),
        ProjectionSpec::output(TensorSpec::new("out.weight", [90, INPUTS])),
    ]
}

impl Model {
    fn new() -> Self {
        let model = Self {
            folder: tempfile::tempdir().unwrap(),
            log: Mutex::default(),
        };
        model.write_weights(7);
        model
    }

    fn write_weights(&self, seed: u32) {
        let mut tensors = HashMap::new();
        for (index, part) in layers().iter().flat_map(|layer| &layer.parts).enumerate() {
            let values = values(part.shape.iter().product(), seed + index as u32);
            let tensor = Tensor::from_vec(values, part.shape.as_slice(), &Device::Cpu).unwrap();
            tensors.insert(part.name.clone(), tensor);
        }
        let path = self.folder.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(FILE_NAME)
    }

    /// Products of the quantized layers with two rows, and what was logged.
    fn load_with(&self, folders: &[PathBuf]) -> (Vec<Option<Tensor>>, Vec<String>) {
        self.load_after(folders, |_| {})
    }

    /// The same after a change of the open file.
    fn load_after(
        &self,
        folders: &[PathBuf],
        change: impl FnOnce(&mut QuantizedFile),
    ) -> (Vec<Option<Tensor>>, Vec<String>) {
        let directory = ModelDirectory::open(self.folder.path()).unwrap();
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let options = FourBits {
            folders: folders.to_vec(),
            log: &|line| self.log.lock().unwrap().push(line.to_owned()),
        };
        let layers = layers();
        let quantized = QuantizedWeights::open(&checkpoint, &layers, &options).unwrap();
        if let Some(file) = quantized.file.borrow_mut().as_mut() {
            change(file);
        }
        let products = layers.iter().map(|layer| {
            let weight = quantized.read(layer, &Device::Cpu).unwrap()?;
            Some(weight.product(&x()).unwrap())
        });
        let products = products.collect();
        (products, std::mem::take(&mut self.log.lock().unwrap()))
    }

    fn load(&self) -> (Vec<Option<Tensor>>, Vec<String>) {
        self.load_with(&[])
    }
}

fn x() -> Tensor {
    Tensor::from_vec(values(2 * INPUTS, 99), (2, INPUTS), &Device::Cpu).unwrap()
}

fn host(products: &[Option<Tensor>]) -> Vec<Option<Vec<Vec<f32>>>> {
    let host = |tensor: &Option<Tensor>| tensor.as_ref().map(|it| it.to_vec2().unwrap());
    products.iter().map(host).collect()
}

fn norm(x: &Tensor) -> f32 {
    let squares = x.sqr().unwrap().sum_all().unwrap();
    squares.to_scalar::<f32>().unwrap().sqrt()
}

#[test]
fn products_are_near_those_of_whole_weights() {
    let model = Model::new();
    let (products, _) = model.load();
    assert!(products[1].is_none(), "its inputs fill no blocks");
    for (index, limit) in [(0, 0.11), (2, 0.03)] {
        let parts = layers()[index].parts.clone();
        let weights: Vec<Tensor> = parts
            .iter()
            .map(|part| {
                let path = model.folder.path().join("model.safetensors");
                let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
                tensors[&part.name].clone()
            })
            .collect();
        let weight = Tensor::cat(&weights, 0).unwrap();
        let expected = x().matmul(&weight.t().unwrap()).unwrap();
        let product = products[index].as_ref().unwrap();
        let error = norm(&(product - &expected).unwrap()) / norm(&expected);
        assert!(error > 1e-4 && error < limit, "layer {index}: {error}");
    }
}

#[test]
fn the_file_is_made_once_and_read_afterwards() {
    let model = Model::new();
    let (first, log) = model.load();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].starts_with("quantizing weights"), "{log:?}");
    let bytes = fs::read(model.file()).unwrap();
    // Any reader of safetensors can read it.
    let tensors = candle_core::safetensors::load(model.file(), &Device::Cpu).unwrap();
    assert_eq!(tensors["m.q.weight"].dims(), [73 * 2 * 144]);
    assert_eq!(tensors["out.weight"].dims(), [90 * 2 * 210]);
    let (second, log) = model.load();
    assert!(log.is_empty(), "{log:?}");
    assert_eq!(host(&first), host(&second));
    assert_eq!(fs::read(model.file()).unwrap(), bytes);
    assert!(!model.folder.path().join(UNFINISHED_NAME).exists());
}

#[test]
fn a_file_that_is_cut_off_or_damaged_is_made_again() {
    let model = Model::new();
    let (expected, _) = model.load();
    let whole = fs::read(model.file()).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let lengths = [
        0,
        7,
        8,
        header - 1,
        header,
        whole.len() / 2,
        whole.len() - 1,
    ];
    let mut damaged: Vec<Vec<u8>> = lengths.map(|length| whole[..length].to_vec()).to_vec();
    damaged.push([&whole[..], &[0]].concat());
    for place in [0, 6, 9, header / 2] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x40;
        damaged.push(bytes);
    }
    for bytes in damaged {
        fs::write(model.file(), &bytes).unwrap();
        let (products, log) = model.load();
        assert_eq!(host(&products), host(&expected));
        assert!(log[0].contains(FILE_NAME), "{} bytes: {log:?}", bytes.len());
        assert_eq!(fs::read(model.file()).unwrap(), whole, "{log:?}");
    }
}

#[test]
fn a_flipped_bit_of_a_layer_is_found_by_its_checksum() {
    let model = Model::new();
    let (expected, _) = model.load();
    let whole = fs::read(model.file()).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for place in [header, header + 1000, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        fs::write(model.file(), &bytes).unwrap();
        let (products, log) = model.load();
        assert_eq!(host(&products), host(&expected));
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].contains("checksum"), "{log:?}");
        assert!(!model.file().exists());
        model.load();
        assert_eq!(fs::read(model.file()).unwrap(), whole);
    }
}

#[test]
fn a_file_that_cannot_be_mapped_is_read() {
    let model = Model::new();
    let (expected, _) = model.load();
    let unmapped = |file: &mut QuantizedFile| file.unmap();
    let (products, log) = model.load_after(&[], unmapped);
    assert_eq!(host(&products), host(&expected));
    assert!(log.is_empty(), "{log:?}");
    let mut bytes = fs::read(model.file()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(model.file(), &bytes).unwrap();
    let (products, log) = model.load_after(&[], unmapped);
    assert_eq!(host(&products), host(&expected));
    assert!(log[0].contains("checksum"), "{log:?}");
}

#[test]
fn a_file_is_not_used_after_the_first_damage() {
    let model = Model::new();
    let (expected, _) = model.load();
    let mut bytes = fs::read(model.file()).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(model.file(), &bytes).unwrap();
    let (products, log) = model.load();
    assert_eq!(host(&products), host(&expected));
    assert_eq!(log.len(), 1, "both layers are damaged: {log:?}");
}

#[test]
fn weights_that_are_replaced_while_they_are_read_are_quantized_anew() {
    let model = Model::new();
    let directory = ModelDirectory::open(model.folder.path()).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    model.write_weights(1000);
    let options = FourBits {
        folders: Vec::new(),
        log: &|_| {},
    };
    QuantizedWeights::open(&checkpoint, &layers(), &options).unwrap();
    let (_, log) = model.load();
    assert!(log[0].contains("other weights"), "{log:?}");
}

#[test]
fn other_weights_are_quantized_anew() {
    let model = Model::new();
    let (first, _) = model.load();
    // Also a file of the same length is another one by its time.
    std::thread::sleep(std::time::Duration::from_millis(20));
    model.write_weights(1000);
    let (second, log) = model.load();
    assert!(log[0].contains("other weights"), "{log:?}");
    assert_ne!(host(&first), host(&second));
    assert!(model.load().1.is_empty());
}

#[test]
fn where_a_folder_takes_no_file_the_next_one_does() {
    let model = Model::new();
    let (expected, _) = model.load();
    fs::remove_file(model.file()).unwrap();
    // Of this name there can be no file.
    let in_the_way = model.folder.path().join(UNFINISHED_NAME);
    fs::create_dir(&in_the_way).unwrap();
    let other = tempfile::tempdir().unwrap();
    let folders = [other.path().join("deep")];
    let (products, log) = model.load_with(&folders);
    assert_eq!(host(&products), host(&expected));
    assert!(log[0].contains("cannot be kept"), "{log:?}");
    assert!(!model.file().exists());
    let (products, log) = model.load_with(&folders);
    assert!(log.is_empty(), "it is found there: {log:?}");
    assert_eq!(host(&products), host(&expected));
    let (products, log) = model.load();
    assert_eq!(host(&products), host(&expected));
    assert!(log.last().unwrap().contains("at each load"), "{log:?}");
}

#[test]
fn a_file_that_another_process_writes_is_left_alone() {
    let model = Model::new();
    let writing = lock_unfinished(model.folder.path()).unwrap();
    // No other folder gets a copy: that one would be an orphan.
    let other = tempfile::tempdir().unwrap();
    let (products, log) = model.load_with(&[other.path().to_owned()]);
    assert!(products[0].is_some());
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].contains("another process"), "{log:?}");
    assert!(model.folder.path().join(UNFINISHED_NAME).exists());
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    drop(writing);
    model.load();
    assert!(model.file().exists());
}

#[test]
fn what_a_link_of_the_temporary_name_leads_to_stays_as_it_is() {
    let model = Model::new();
    let other = tempfile::tempdir().unwrap();
    let (target, absent) = (other.path().join("target"), other.path().join("absent"));
    fs::write(&target, "precious").unwrap();
    let link = model.folder.path().join(UNFINISHED_NAME);
    for path in [&target, &absent] {
        std::os::unix::fs::symlink(path, &link).unwrap();
        let (products, log) = model.load();
        assert!(products[0].is_some());
        assert!(log[0].contains("cannot be kept"), "{log:?}");
        assert!(!model.file().exists() && link.is_symlink());
        fs::remove_file(&link).unwrap();
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert!(!absent.exists());
}

#[test]
fn a_locked_file_is_known_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(UNFINISHED_NAME);
    let file = lock_unfinished(folder.path()).unwrap();
    assert!(is_at(&file, &path).unwrap());
    // As another process does that has finished with it.
    fs::rename(&path, folder.path().join(FILE_NAME)).unwrap();
    assert!(!is_at(&file, &path).unwrap());
    let next = lock_unfinished(folder.path()).unwrap();
    assert!(is_at(&next, &path).unwrap() && !is_at(&file, &path).unwrap());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(is_at(&next, &path).is_err());
}

#[test]
fn a_missing_weight_is_an_error_of_the_checkpoint() {
    let model = Model::new();
    let directory = ModelDirectory::open(model.folder.path()).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let options = FourBits {
        folders: Vec::new(),
        log: &|_| {},
    };
    let layers = [ProjectionSpec::new("m.", &[("absent", 4)], INPUTS)];
    let error = QuantizedWeights::open(&checkpoint, &layers, &options).err();
    assert!(error.unwrap().detail.unwrap().contains("m.absent.weight"));
    assert!(!model.file().exists());
    assert!(!model.folder.path().join(UNFINISHED_NAME).exists());
}
