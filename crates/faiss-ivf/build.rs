//! Compiles the shim against the headers of the FAISS that faiss-sys has built,
//! and decides which BLAS goes into the library.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Names a static OpenBLAS archive in place of those found by themselves.
const ARCHIVE_VARIABLE: &str = "PG_SIGHT_OPENBLAS";

fn main() {
    compile_shim();
    link_blas();
}

/// Compiler flags come from `CXXFLAGS_<target>`, as those of FAISS do: types of
/// its headers have another layout at another instruction level.
fn compile_shim() {
    let faiss = PathBuf::from(env::var_os("DEP_FAISS_C_ROOT").expect("faiss-sys tells its root"));
    let headers = faiss.join("include");
    assert!(
        headers.join("faiss/IndexFlat.h").is_file(),
        "no headers of FAISS in {}",
        headers.display()
    );
    println!("cargo:rerun-if-changed=shim");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/shim.cpp")
        .flag("-isystem")
        .flag(headers)
        .flag("-fopenmp")
        .define("NDEBUG", None)
        .compile("faiss_ivf_shim");
}

/// faiss-sys links `-lblas -llapack`, which at run time may be any BLAS of the
/// system, also one that starts threads when it is loaded. A folder in front of
/// the search path that holds both names makes them an OpenBLAS of our choice.
fn link_blas() {
    println!("cargo:rerun-if-env-changed={ARCHIVE_VARIABLE}");
    let Some(archive) = find_archive() else {
        println!(
            "cargo:warning=no static OpenBLAS found (Debian: libopenblas-openmp-dev); \
             linking the libblas of the system, which must not be one that starts threads"
        );
        return;
    };
    println!("cargo:rerun-if-changed={}", archive.display());
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("blas");
    fs::create_dir_all(&folder).expect("the output folder is writable");
    // The archive holds LAPACK too.
    for name in ["libblas.a", "liblapack.a"] {
        replace_link(&archive, &folder.join(name));
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
}

fn replace_link(target: &Path, link: &Path) {
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link).expect("the old link can be removed");
    }
    symlink(target, link).expect("the output folder takes links");
}

/// The OpenMP build first: FAISS leaves the threads of its matrix products to
/// BLAS. The serial build serves too, with one thread for k-means.
fn find_archive() -> Option<PathBuf> {
    if let Some(path) = env::var_os(ARCHIVE_VARIABLE) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{ARCHIVE_VARIABLE} names no file");
        return Some(path);
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let debian = format!("/usr/lib/{arch}-linux-gnu");
    [
        format!("{debian}/openblas-openmp/libopenblas.a"),
        format!("{debian}/openblas-serial/libopenblas.a"),
        // Fedora and its relatives.
        "/usr/lib64/libopenblaso.a".to_owned(),
        "/usr/lib64/libopenblas.a".to_owned(),
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|path| path.is_file())
}
