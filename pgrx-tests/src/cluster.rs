//! A PostgreSQL cluster in a temporary folder.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use postgres::error::DbError;
use postgres::{Client, NoTls};
use tempfile::TempDir;

use crate::installation::{Installation, Owner};
use crate::models::{CAPTIONER, ENCODER, demo_directory, minilm_directory};
use crate::process::{is_alive, kill, wait_until};

/// Name of the superuser and of the first database.
const SUPERUSER: &str = "postgres";
/// There is no TCP; the port only names the socket.
const PORT: u16 = 5432;

/// A running cluster; it is stopped and removed when dropped.
pub struct Cluster {
    folder: TempDir,
    installation: Installation,
    owner: Option<Owner>,
}

impl Cluster {
    /// A cluster with the extension and both demo models in database `postgres`.
    pub fn with_models() -> Self {
        Self::with_models_and(&[])
    }

    /// The same with more lines of configuration.
    pub fn with_models_and(configuration: &[&str]) -> Self {
        let cluster = Self::start(configuration);
        let mut client = cluster.client();
        client
            .batch_execute("CREATE EXTENSION pg_sight CASCADE")
            .expect("extension is created");
        cluster.register_models(&mut client);
        cluster
    }

    /// An empty cluster that runs.
    pub fn start(configuration: &[&str]) -> Self {
        Self::start_of(Installation::tested(), configuration)
    }

    /// The same of another installation than the tested one.
    pub fn start_of(installation: Installation, configuration: &[&str]) -> Self {
        let cluster = Self::without_data(installation);
        cluster.init(configuration);
        cluster.start_server();
        cluster
    }

    fn without_data(installation: Installation) -> Self {
        // Socket paths are limited to 107 bytes: not below a long TMPDIR.
        let folder = tempfile::Builder::new()
            .prefix("sight")
            .tempdir_in("/tmp")
            .expect("folder");
        let owner = Owner::choose();
        if let Some(owner) = owner {
            chown(folder.path(), Some(owner.uid), Some(owner.gid)).expect("chown");
        }
        Self {
            folder,
            installation,
            owner,
        }
    }

    fn init(&self, configuration: &[&str]) {
        let data = self.data();
        // Checksums as PostgreSQL 18 has them by itself: a cluster is upgraded
        // only to one that has them, too.
        let init = [
            "--no-sync",
            "--data-checksums",
            "-A",
            "trust",
            "-U",
            SUPERUSER,
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
        ];
        let init = init.map(OsStr::new).into_iter().chain([data.as_os_str()]);
        self.run("initdb", init);
        let socket = self.folder.path().display();
        let mut lines = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket}'\nport = {PORT}\n\
             shared_buffers = 128MB\nlog_line_prefix = '%m [%p] %b '\n"
        );
        for line in configuration {
            lines.push_str(line);
            lines.push('\n');
        }
        self.configure(&lines);
    }

    /// Adds lines to the configuration file; the last one of a setting counts.
    fn configure(&self, lines: &str) {
        let file = self.data().join("postgresql.conf");
        let old = fs::read_to_string(&file).expect("configuration");
        fs::write(&file, old + lines).expect("configuration");
    }

    /// A hot standby of this cluster, which streams from it.
    pub fn standby(&self) -> Self {
        let standby = Self::without_data(self.installation.clone());
        let data = standby.data();
        let port = PORT.to_string();
        let source = ["-h", self.folder.path().to_str().expect("UTF-8")];
        let options = ["-p", &port, "-U", SUPERUSER, "-c", "fast", "-R", "-D"];
        let arguments = source.into_iter().chain(options).map(OsStr::new);
        self.run("pg_basebackup", arguments.chain([data.as_os_str()]));
        let socket = standby.folder.path().display();
        standby.configure(&format!("unix_socket_directories = '{socket}'\n"));
        standby.start_server();
        standby
    }

    /// Makes this cluster, which is stopped, a standby of another one that has
    /// been promoted from its standby.
    pub fn rewind(&self, source: &Self) {
        let data = self.data();
        let connection = format!(
            "--source-server=host={} port={PORT} user={SUPERUSER} dbname=postgres",
            source.folder.path().display()
        );
        let arguments = [connection.as_str(), "-R", "-D"].map(OsStr::new);
        self.run("pg_rewind", arguments.into_iter().chain([data.as_os_str()]));
        // The configuration file has become the other's.
        let socket = self.folder.path().display();
        self.configure(&format!("unix_socket_directories = '{socket}'\n"));
        self.start_server();
    }

    /// Ends the recovery of a standby.
    pub fn promote(&self) {
        let data = self.data();
        let arguments = ["promote", "-w", "-s", "-D"].map(OsStr::new);
        self.run("pg_ctl", arguments.into_iter().chain([data.as_os_str()]));
    }

    /// A cluster of the tested installation with the data of this one, which is
    /// stopped and is not to be started again: the files are shared.
    pub fn upgrade(&self) -> Self {
        let new = Self::without_data(Installation::tested());
        new.init(&[]);
        let (from, to) = (self.data(), new.data());
        let arguments = [
            ("--old-bindir", self.installation.bin().as_path()),
            ("--new-bindir", new.installation.bin()),
            ("--old-datadir", &from),
            ("--new-datadir", &to),
            ("--socketdir", new.folder.path()),
            ("--username", Path::new(SUPERUSER)),
        ];
        let arguments = arguments
            .iter()
            .flat_map(|(option, value)| [OsStr::new(option), value.as_os_str()]);
        new.run("pg_upgrade", arguments.chain([OsStr::new("--link")]));
        new.start_server();
        new
    }

    /// Copies a database of another cluster, with its name and its settings, by
    /// `pg_dump` and `pg_restore`.
    pub fn restore_from(&self, source: &Self, database: &str) {
        let archive = self.folder.path().join("dump");
        let archive = archive.to_str().expect("UTF-8");
        let port = PORT.to_string();
        let login = |cluster: &Self| {
            let host = cluster.folder.path().to_str().expect("UTF-8").to_owned();
            [String::from("-h"), host, "-p".into(), port.clone()]
        };
        let run = |program: &str, login: [String; 4], rest: &[&str]| {
            let login = login.iter().map(OsStr::new);
            self.run(program, login.chain(rest.iter().map(OsStr::new)));
        };
        let dump = ["-U", SUPERUSER, "-F", "custom", "-f", archive, database];
        run("pg_dump", login(source), &dump);
        let first = ["-U", SUPERUSER, "-d", "postgres"];
        let restore = [first.as_slice(), &["--create", "--exit-on-error", archive]].concat();
        run("pg_restore", login(self), &restore);
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The cluster's folder, which the server's user may read and write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What PostgreSQL has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn command(&self, program: &str) -> Command {
        self.command_at(&self.installation.bin().join(program))
    }

    fn command_at(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin");
        command.current_dir(self.folder.path());
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    fn run<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Output {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .expect("program starts");
        assert!(
            output.status.success(),
            "{program}: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        output
    }

    /// Starts PostgreSQL, after a stop or a crash.
    pub fn start_server(&self) {
        self.start_server_with(&[]);
    }

    /// The same with variables in its environment.
    pub fn start_server_with(&self, environment: &[(&str, &str)]) {
        // Not `output()`: the postmaster would keep a pipe open for ever.
        let status = self
            .command("pg_ctl")
            .envs(environment.iter().copied())
            .args(["start", "-w", "-s", "-t", "60", "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(self.folder.path().join("log"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .expect("pg_ctl starts");
        assert!(
            status.success(),
            "PostgreSQL did not start:\n{}",
            self.log()
        );
    }

    /// Stops PostgreSQL in the given mode: `fast`, `immediate` or `smart`.
    pub fn stop_server(&self, mode: &str) {
        let data = self.data();
        let arguments = ["stop", "-w", "-s", "-t", "60", "-m", mode, "-D"].map(OsStr::new);
        self.run("pg_ctl", arguments.into_iter().chain([data.as_os_str()]));
    }

    /// Process of the postmaster.
    pub fn postmaster(&self) -> i32 {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        file.lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("a process id")
    }

    /// `kill -9` of the postmaster.
    pub fn crash(&self) {
        let postmaster = self.postmaster();
        kill(postmaster, libc::SIGKILL);
        wait_until("the postmaster is gone", Duration::from_secs(10), || {
            !is_alive(postmaster)
        });
    }

    /// Starts PostgreSQL after a crash, which recovers it. It refuses as long
    /// as processes of the crashed one use its shared memory.
    pub fn recover(&self) {
        let data = self.data();
        wait_until(
            "backends of the crashed cluster are gone",
            Duration::from_secs(20),
            || {
                let processes = fs::read_dir("/proc").expect("/proc");
                !processes.flatten().any(|process| {
                    fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data)
                })
            },
        );
        // A process that init has not reaped yet still guards its lock file.
        let entry = PathBuf::from(format!("/proc/{}", self.postmaster()));
        wait_until(
            "the crashed postmaster is reaped",
            Duration::from_secs(20),
            || !entry.exists(),
        );
        self.start_server();
    }

    /// Rereads the configuration.
    pub fn reload(&self) {
        let data = self.data();
        let arguments = ["reload", "-s", "-D"].map(OsStr::new);
        self.run("pg_ctl", arguments.into_iter().chain([data.as_os_str()]));
    }

    /// Connects as a superuser to database `postgres`.
    pub fn client(&self) -> Client {
        self.client_of(SUPERUSER, "postgres")
    }

    /// Whether PostgreSQL lets clients in, which it does not while it recovers.
    pub fn accepts_connections(&self) -> bool {
        let mut command = self.command("pg_isready");
        command.arg("-q").arg("-h").arg(self.folder.path());
        command.status().is_ok_and(|status| status.success())
    }

    /// Connects as a role to a database.
    pub fn client_of(&self, user: &str, database: &str) -> Client {
        self.client_with_notices(user, database, |_| {})
    }

    /// The same, with something to do about each notice.
    pub fn client_with_notices(
        &self,
        user: &str,
        database: &str,
        on_notice: impl Fn(DbError) + Send + Sync + 'static,
    ) -> Client {
        postgres::Config::new()
            .host_path(self.folder.path())
            .port(PORT)
            .user(user)
            .dbname(database)
            .notice_callback(on_notice)
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Runs a file in psql as a user would see it: echo of the statements,
    /// results and errors in one text.
    pub fn psql(&self, database: &str, file: &Path) -> String {
        // Read here: psql's user need not be able to read the checkout.
        let script = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let copy = self.folder.path().join(file.file_name().expect("a file"));
        fs::write(&copy, script).expect("copy");
        let output = self
            .command_at(Path::new("/bin/sh"))
            .args([
                "-c",
                "exec \"$0\" -X -q -a -h \"$1\" -p \"$2\" -U \"$3\" -d \"$4\" -f \"$5\" 2>&1",
            ])
            .arg(self.installation.bin().join("psql"))
            .arg(self.folder.path())
            .arg(PORT.to_string())
            .args([SUPERUSER, database])
            .arg(copy.file_name().expect("a file"))
            .output()
            .expect("psql starts");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Copies a model to where the server's user can read it.
    pub fn copy_model(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.folder.path().join(name);
        copy_tree(from, &to);
        to
    }

    /// Registers both demo models in the client's database, and makes them those
    /// that it takes by default.
    pub fn register_models(&self, client: &mut Client) {
        let captioner = self.copy_model(&demo_directory().join("captioner"), CAPTIONER);
        let encoder = self.copy_model(&minilm_directory(), ENCODER);
        for (name, directory) in [(CAPTIONER, captioner), (ENCODER, encoder)] {
            let directory = directory.to_str().expect("UTF-8");
            client
                .execute("SELECT sight_model_register($1, $2)", &[&name, &directory])
                .unwrap_or_else(|error| panic!("{name}: {error:?}\n{}", self.log()));
        }
        let database: String = client
            .query_one("SELECT quote_ident(current_database())", &[])
            .expect("a name")
            .get(0);
        let settings = format!(
            "ALTER DATABASE {database} SET pg_sight.describe_model = '{CAPTIONER}';
             ALTER DATABASE {database} SET pg_sight.embed_model = '{ENCODER}';
             SET pg_sight.describe_model = '{CAPTIONER}';
             SET pg_sight.embed_model = '{ENCODER}';"
        );
        client.batch_execute(&settings).expect("settings");
    }

    /// Process of the model server, as the view shows it.
    pub fn model_server(&self, client: &mut Client) -> Option<i32> {
        let row = client.query_one("SELECT pid, state FROM sight_server_status", &[]);
        row.expect("the view always has one row").get(0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of PostgreSQL ---\n{}", self.log());
        }
        let _ = self
            .command("pg_ctl")
            .args(["stop", "-s", "-m", "immediate", "-D"])
            .arg(self.data())
            .status();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("permissions");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copy");
            fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).expect("permissions");
        }
    }
}

/// Waits until a standby has replayed what its primary has committed; `writer` is a session of
/// the primary, `reader` one of the standby.
///
/// # Panics
/// When it has not after a minute, or a query fails.
pub fn catch_up(writer: &mut Client, reader: &mut Client) {
    // Log of a transaction without an id, such as a calibration, is flushed some time
    // after its end: with the next commit of one that has an id.
    let message = "SELECT pg_logical_emit_message(true, 'test', 'flush')";
    writer.query(message, &[]).expect("a message");
    let flushed = "SELECT pg_current_wal_flush_lsn()::text";
    let flushed: String = writer.query_one(flushed, &[]).expect("a place").get(0);
    let replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
    wait_until("the standby has caught up", Duration::from_secs(60), || {
        let row = reader.query_one(replayed, &[&flushed]);
        row.expect("the standby answers").get(0)
    });
}
