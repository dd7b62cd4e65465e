//! Settings. None needs a restart of PostgreSQL: those of the server process
//! take effect with a reload, which restarts that process alone.

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};
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
pub static THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(600_000);
pub static MAX_QUEUED_REQUESTS: GucSetting<i32> = GucSetting::<i32>::new(1024);
pub static MAX_BATCH_TOKENS: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static MAX_BATCH_IMAGES: GucSetting<i32> = GucSetting::<i32>::new(0);

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
    define_server();
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

fn define_server() {
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
    let server = |name, short, long, setting, least, most, unit| {
        Int {
            name,
            short,
            long,
            setting,
            least,
            most,
            context: GucContext::Sighup,
            unit,
        }
        .define();
    };
    server(
        c"pg_sight.threads",
        c"Compute threads of the model server.",
        c"0 takes one for each processor core.",
        &THREADS,
        0,
        1024,
        GucFlags::default(),
    );
    server(
        c"pg_sight.idle_timeout",
        c"Time without a request after which the model server exits and frees its memory.",
        c"0 keeps it running.",
        &IDLE_TIMEOUT,
        0,
        i32::MAX,
        GucFlags::UNIT_MS,
    );
    server(
        c"pg_sight.max_queued_requests",
        c"Requests that may wait for the device; one more is refused as overloaded.",
        c"",
        &MAX_QUEUED_REQUESTS,
        1,
        1_000_000,
        GucFlags::default(),
    );
    server(
        c"pg_sight.max_batch_tokens",
        c"Tokens in one batch of texts.",
        c"A batch is not interrupted. 0 takes what suits the device: 1024 on a CPU, 16384 on a GPU.",
        &MAX_BATCH_TOKENS,
        0,
        10_000_000,
        GucFlags::default(),
    );
    server(
        c"pg_sight.max_batch_images",
        c"Pictures in one batch.",
        c"0 takes what suits the device: 4 on a CPU, 32 on a GPU.",
        &MAX_BATCH_IMAGES,
        0,
        4096,
        GucFlags::default(),
    );
}

/// The value of a string setting; never null with a boot value.
pub fn string(setting: &'static GucSetting<Option<CString>>) -> String {
    setting
        .get()
        .map(|value| value.to_string_lossy().into_owned())
        .unwrap_or_default()
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

/// `pg_sight.request_timeout`; `None` waits without limit.
pub fn request_timeout() -> Option<Duration> {
    Some(REQUEST_TIMEOUT.get())
        .filter(|ms| *ms > 0)
        .map(|ms| Duration::from_millis(ms as u64))
}

/// `pg_sight.start_timeout`.
pub fn start_timeout() -> Duration {
    Duration::from_millis(START_TIMEOUT.get() as u64)
}
