//! Settings. None needs a restart of PostgreSQL: those of the server process
//! take effect with a reload, which restarts that process alone.

use std::ffi::{CStr, CString, c_char, c_void};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_guard, pg_sys};
use sight_protocol::Limits;

pub static EMBED_MODEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"all-mpnet-base-v2"));
pub static DESCRIBE_MODEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"blip-image-captioning-large"));
/// Empty where the model's default is wanted.
pub static PROMPT_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static REQUEST_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static START_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static MAX_TEXT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
static MAX_IMAGE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(32 * 1024);
static MAX_IMAGE_PIXELS: GucSetting<i32> = GucSetting::<i32>::new(100_000_000);

/// Whether `sight_model_pull` may use the network.
pub static ALLOW_DOWNLOADS: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Empty where the server's environment decides.
pub static HF_HOME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
/// Empty where the server's environment decides.
pub static HF_ENDPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

pub static DEVICE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
pub static DTYPE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
/// Linear layers of language models.
pub static LOAD_IN_4BIT: GucSetting<bool> = GucSetting::<bool>::new(false);
pub static THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(600_000);
pub static MAX_QUEUED_REQUESTS: GucSetting<i32> = GucSetting::<i32>::new(1024);
pub static MAX_BATCH_TOKENS: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static MAX_BATCH_IMAGES: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static MAX_QUEUED_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
pub static MAX_MODEL_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static EMBED_CACHE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(32 * 1024);
pub static PRELOAD_MODELS: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));
pub static WARM_UP: GucSetting<bool> = GucSetting::<bool>::new(true);
pub static METRICS_ADDRESS: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));
static WATCHDOG_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static WATCHDOG_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(120_000);

/// One setting that is an integer.
struct Int {
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    least: i32,
    most: i32,
    context: GucContext,
    unit: GucFlags,
}

impl Int {
    fn define(self) {
        GucRegistry::define_int_guc(
            self.name,
            self.short,
            self.long,
            self.setting,
            self.least,
            self.most,
            self.context,
            self.unit,
        );
    }
}

/// Defines the settings of the functions and of the server.
pub fn define() {
    GucRegistry::define_string_guc(
        c"pg_sight.embed_model",
        c"Model of embed() when the call names none.",
        c"The name of a registered model, see sight_models.",
        &EMBED_MODEL,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_sight.describe_model",
        c"Model of blip_describe() when the call names none.",
        c"The name of a registered model, see sight_models.",
        &DESCRIBE_MODEL,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_sight.prompt_name",
        c"Prompt of the model that embed() puts before a text when the call names none.",
        c"Every model has query and document; empty takes what the model names as its default.",
        &PROMPT_NAME,
        GucContext::Userset,
        GucFlags::default(),
    );
    define_limits();
    define_downloads();
    define_device();
    define_server();
    define_memory();
    define_watch();
    // SAFETY: a NUL-terminated constant; only marks the prefix as ours, so that
    // misspelt settings are errors.
    unsafe {
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(c"pg_sight".as_ptr());
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(c"pg_sight".as_ptr());
    }
}

fn define_limits() {
    Int {
        name: c"pg_sight.request_timeout",
        short: c"Longest time one request to the model server may take.",
        long: c"0 waits without limit; statement_timeout applies all the same.",
        setting: &REQUEST_TIMEOUT,
        least: 0,
        most: i32::MAX,
        context: GucContext::Userset,
        unit: GucFlags::UNIT_MS,
    }
    .define();
    Int {
        name: c"pg_sight.start_timeout",
        short: c"Longest time to wait for the model server to start.",
        long: c"",
        setting: &START_TIMEOUT,
        least: 100,
        most: i32::MAX,
        context: GucContext::Userset,
        unit: GucFlags::UNIT_MS,
    }
    .define();
    Int {
        name: c"pg_sight.max_text_size",
        short: c"Longest text that is embedded.",
        long: c"What exceeds a model's own maximal sequence length is cut as sentence-transformers does.",
        setting: &MAX_TEXT_SIZE,
        least: 1,
        most: 1024 * 1024,
        context: GucContext::Suset,
        unit: GucFlags::UNIT_KB,
    }
    .define();
    Int {
        name: c"pg_sight.max_image_size",
        short: c"Largest encoded picture that is described.",
        long: c"",
        setting: &MAX_IMAGE_SIZE,
        least: 1,
        most: 1024 * 1024,
        context: GucContext::Suset,
        unit: GucFlags::UNIT_KB,
    }
    .define();
    Int {
        name: c"pg_sight.max_image_pixels",
        short: c"Largest decoded picture that is described, in pixels.",
        long: c"Checked against the picture's header, before anything is decoded.",
        setting: &MAX_IMAGE_PIXELS,
        least: 1,
        most: i32::MAX,
        context: GucContext::Suset,
        unit: GucFlags::default(),
    }
    .define();
}

/// They go with each request, so that changing them restarts nothing.
fn define_downloads() {
    GucRegistry::define_bool_guc(
        c"pg_sight.allow_downloads",
        c"Whether sight_model_pull() may download models.",
        c"",
        &ALLOW_DOWNLOADS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_sight.hf_home",
        c"Directory on the database's host that holds the cache of downloaded models.",
        c"Stands for HF_HOME; empty takes the variable of PostgreSQL's environment.",
        &HF_HOME,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"pg_sight.hf_endpoint",
        c"URL of the hub that models are downloaded from.",
        c"Stands for HF_ENDPOINT; empty takes the variable of PostgreSQL's environment.",
        &HF_ENDPOINT,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
}

fn define_device() {
    GucRegistry::define_string_guc(
        c"pg_sight.device",
        c"Device of the model server: auto, cpu, cuda or cuda:N.",
        c"auto takes the first GPU if the server was built for it and finds one, else the CPU.",
        &DEVICE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_sight.dtype",
        c"Numbers that models compute with: auto, float32, float16 or bfloat16.",
        c"auto takes bfloat16 on a GPU. On the CPU they are float32.",
        &DTYPE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_sight.load_in_4bit",
        c"Whether the language models of captioners are loaded in 4 bits.",
        c"Concerns InstructBLIP. The quantized weights are kept in a file beside the model.",
        &LOAD_IN_4BIT,
        GucContext::Sighup,
        GucFlags::default(),
    );
    server_int(
        c"pg_sight.threads",
        c"Compute threads of the model server.",
        c"0 takes one for each processor core.",
        &THREADS,
        0..=1024,
        GucFlags::default(),
    );
}

/// Defines an integer that is given to the server when it starts.
fn server_int(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    range: RangeInclusive<i32>,
    unit: GucFlags,
) {
    Int {
        name,
        short,
        long,
        setting,
        least: *range.start(),
        most: *range.end(),
        context: GucContext::Sighup,
        unit,
    }
    .define();
}

fn define_server() {
    server_int(
        c"pg_sight.idle_timeout",
        c"Time without a request after which the model server exits and frees its memory.",
        c"0 keeps it running.",
        &IDLE_TIMEOUT,
        0..=i32::MAX,
        GucFlags::UNIT_MS,
    );
    server_int(
        c"pg_sight.max_queued_requests",
        c"Requests that may wait for the device; one more is refused as overloaded.",
        c"",
        &MAX_QUEUED_REQUESTS,
        1..=1_000_000,
        GucFlags::default(),
    );
    server_int(
        c"pg_sight.max_batch_tokens",
        c"Tokens in one batch of texts.",
        c"A batch is not interrupted. 0 takes what suits the device: 1024 on a CPU, 16384 on a GPU.",
        &MAX_BATCH_TOKENS,
        0..=10_000_000,
        GucFlags::default(),
    );
    server_int(
        c"pg_sight.max_batch_images",
        c"Pictures in one batch.",
        c"0 takes what suits the device: 4 on a CPU, 32 on a GPU.",
        &MAX_BATCH_IMAGES,
        0..=4096,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_sight.preload_models",
        c"Directories of models that the server loads when it starts, separated by commas.",
        c"",
        &PRELOAD_MODELS,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_bool_guc(
        c"pg_sight.warm_up",
        c"Whether a model that is loaded ahead of its use computes a batch at once.",
        c"The first request then finds all there is to make once, and a lack of memory shows early.",
        &WARM_UP,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

fn define_memory() {
    server_int(
        c"pg_sight.max_queued_size",
        c"Memory of the model server for requests; further ones are received when there is room.",
        c"",
        &MAX_QUEUED_SIZE,
        1..=1024 * 1024,
        GucFlags::UNIT_MB,
    );
    server_int(
        c"pg_sight.max_model_memory",
        c"Memory for the weights of all models; those not used for longest make room.",
        c"0 is no limit.",
        &MAX_MODEL_MEMORY,
        0..=i32::MAX,
        GucFlags::UNIT_MB,
    );
    server_int(
        c"pg_sight.embed_cache_size",
        c"Memory for embeddings of texts that may come again.",
        c"0 keeps none.",
        &EMBED_CACHE_SIZE,
        0..=i32::MAX,
        GucFlags::UNIT_KB,
    );
}

fn define_watch() {
    for (name, short, long, setting) in [
        (
            c"pg_sight.watchdog_interval",
            c"Time between two looks whether the models of the server still compute.",
            c"0 does not look.",
            &WATCHDOG_INTERVAL,
        ),
        (
            c"pg_sight.watchdog_timeout",
            c"Time after which a model server that does not get on is ended.",
            c"A batch, or a step of a description, must not take so long. 0 waits without limit.",
            &WATCHDOG_TIMEOUT,
        ),
    ] {
        server_int(name, short, long, setting, 0..=i32::MAX, GucFlags::UNIT_MS);
    }
    // SAFETY: the hook follows PostgreSQL's protocol for hooks of strings.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pg_sight.metrics_address",
            c"Loopback address and port at which the model server gives metrics to Prometheus.",
            c"For example 127.0.0.1:9187; empty gives none. Every user of the host can read them.",
            &METRICS_ADDRESS,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_metrics_address),
            None,
            None,
        );
    }
}

const NO_LOOPBACK: &CStr =
    c"It must be an IP address of the loopback interface with a port, such as 127.0.0.1:9187.";

/// Whether the server may listen at an address: at a loopback address and port.
fn is_loopback(address: &str) -> bool {
    address
        .parse::<SocketAddr>()
        .is_ok_and(|address| address.ip().is_loopback())
}

/// # Safety
/// To be called by PostgreSQL, with a pointer to a string that is null or ends.
#[pg_guard]
unsafe extern "C-unwind" fn check_metrics_address(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's promise; PostgreSQL only reads the detail.
    unsafe {
        if new.is_null() || (*new).is_null() {
            return true;
        }
        let address = CStr::from_ptr(*new).to_string_lossy();
        if address.is_empty() || is_loopback(&address) {
            return true;
        }
        pg_sys::GUC_check_errdetail_string = NO_LOOPBACK.as_ptr().cast_mut();
        false
    }
}

/// The value of a string setting; never null with a boot value.
pub fn string(setting: &'static GucSetting<Option<CString>>) -> String {
    setting
        .get()
        .map(|value| value.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The directories of a setting that lists them, separated by commas; quotes hold those
/// that have commas or spaces themselves.
///
/// # Errors
/// The list ends in the middle of a name, or a name is empty.
pub fn directories(setting: &'static GucSetting<Option<CString>>) -> Result<Vec<String>, ()> {
    let value = setting.get().unwrap_or_default();
    // SAFETY: PostgreSQL cuts a copy of the value in place, and makes a list of strings
    // in its memory, which are copied.
    unsafe {
        let copy = pg_sys::pstrdup(value.as_ptr());
        let mut list = std::ptr::null_mut();
        let separator = b',' as c_char;
        let well_formed = pg_sys::SplitDirectoriesString(copy, separator, &mut list);
        let names = pgrx::PgList::<c_char>::from_pg(list);
        let names = names.iter_ptr();
        let names = names.map(|name| CStr::from_ptr(name).to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        pg_sys::list_free_deep(list);
        pg_sys::pfree(copy.cast());
        if well_formed { Ok(names) } else { Err(()) }
    }
}

/// The bounds that apply to a request made now.
pub fn limits() -> Limits {
    Limits {
        max_text_bytes: kilobytes(&MAX_TEXT_SIZE),
        max_image_bytes: kilobytes(&MAX_IMAGE_SIZE),
        max_image_pixels: MAX_IMAGE_PIXELS.get() as u64,
    }
}

fn kilobytes(setting: &'static GucSetting<i32>) -> u64 {
    setting.get() as u64 * 1024
}

/// A setting in milliseconds, of which 0 is none.
fn duration(setting: &'static GucSetting<i32>) -> Option<Duration> {
    Some(setting.get())
        .filter(|ms| *ms > 0)
        .map(|ms| Duration::from_millis(ms as u64))
}

/// `pg_sight.request_timeout`; `None` waits without limit.
pub fn request_timeout() -> Option<Duration> {
    duration(&REQUEST_TIMEOUT)
}

/// `pg_sight.watchdog_interval`; `None` does not look.
pub fn watchdog_interval() -> Option<Duration> {
    duration(&WATCHDOG_INTERVAL)
}

/// `pg_sight.watchdog_timeout`; `None` waits without limit.
pub fn watchdog_timeout() -> Option<Duration> {
    duration(&WATCHDOG_TIMEOUT)
}

/// `pg_sight.start_timeout`.
pub fn start_timeout() -> Duration {
    Duration::from_millis(START_TIMEOUT.get() as u64)
}
