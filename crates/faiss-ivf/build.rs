//! Compiles the shim against the headers of the FAISS that faiss-sys has built,
//! and decides which BLAS goes into the library.

use std::env;
use std::fs;
use std::path::PathBuf;

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
        .files(["shim/shim.cpp", "shim/quantizer.cpp", "shim/transform.cpp"])
        .flag("-isystem")
        .flag(headers)
        .flag("-fopenmp")
        .define("NDEBUG", None)
        .compile("faiss_ivf_shim");
}

/// faiss-sys links `-lblas -llapack`, which at run time may be any BLAS of the
/// system, also one that starts threads when it is loaded. A folder in front of
/// the search path gives both names the meaning of a static OpenBLAS.
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
    // A script of the linker, as libc.so is one. The archive holds LAPACK too,
    // some of whose routines call the run-time library of Fortran.
    let mut script = format!("INPUT ( {}", archive.display());
    if let Some(fortran) = find_fortran() {
        script.push_str(&format!(" {}", fortran.display()));
    }
    script.push_str(" )\n");
    for name in ["libblas.so", "liblapack.so"] {
        fs::write(folder.join(name), &script).expect("the output folder is writable");
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
}

/// The OpenMP build first: FAISS leaves the threads of its matrix products to
/// BLAS. The serial build serves too, with one thread for k-means.
fn find_archive() -> Option<PathBuf> {
    if let Some(path) = env::var_os(ARCHIVE_VARIABLE) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{ARCHIVE_VARIABLE} names no file");
        return Some(path);
    }
    let debian = debian_folder();
    [
        debian.join("openblas-openmp/libopenblas.a"),
        debian.join("openblas-serial/libopenblas.a"),
        // Fedora and its relatives.
        PathBuf::from("/usr/lib64/libopenblaso.a"),
        PathBuf::from("/usr/lib64/libopenblas.a"),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

fn find_fortran() -> Option<PathBuf> {
    [debian_folder(), PathBuf::from("/usr/lib64")]
        .into_iter()
        .map(|folder| folder.join("libgfortran.so.5"))
        .find(|path| path.is_file())
}

fn debian_folder() -> PathBuf {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    PathBuf::from(format!("/usr/lib/{arch}-linux-gnu"))
}
