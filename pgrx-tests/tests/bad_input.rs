//! Bad input gives an error of its own kind, and everything lives on.

use std::fs;

use pg_sight_tests::{
    CAPTIONER, Cluster, ENCODER, SqlFailure, demo_directory, samples, sql_failure,
};
use postgres::Client;

/// Every error explains itself.
fn explained(failure: &SqlFailure) {
    assert!(
        !failure.message.is_empty() && !failure.message.ends_with('.'),
        "{failure:?}"
    );
    assert!(failure.detail.ends_with('.'), "detail: {failure:?}");
    assert!(!failure.hint.is_empty(), "hint: {failure:?}");
}

fn describe(client: &mut Client, image: &[u8]) -> Result<String, postgres::Error> {
    client
        .query_one("SELECT blip_describe($1)", &[&image])
        .map(|row| row.get(0))
}

/// A PNG whose header is right and whose data is not.
fn png_declaring(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend_from_slice(&header);
    png.extend_from_slice(&crc32(&header).to_be_bytes());
    png.extend_from_slice(b"\0\0\0\x10IDATgarbage garbage!");
    png
}

/// CRC-32 as PNG's specification defines it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// A 1x1 bitmap.
fn one_pixel() -> Vec<u8> {
    let mut bmp = b"BM".to_vec();
    for word in [58u32, 0, 54, 40, 1, 1, 24 << 16 | 1, 0, 4, 2835, 2835, 0, 0] {
        bmp.extend_from_slice(&word.to_le_bytes());
    }
    bmp.extend_from_slice(&[0x20, 0x40, 0xf0, 0]);
    bmp
}

#[test]
fn bad_pictures() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let (_, jpeg) = &samples()[0];
    assert!(describe(&mut client, jpeg).is_ok());
    let server = cluster.model_server(&mut client);
    assert!(server.is_some());
    for (what, image) in [
        ("truncated JPEG", &jpeg[..jpeg.len() / 3]),
        ("start of a JPEG", &jpeg[..10]),
        (
            "text",
            b"this is no picture, this is a text file\n".as_slice(),
        ),
        ("empty", b""),
        ("zeros", &[0; 4096]),
    ] {
        let failure = sql_failure(describe(&mut client, image));
        assert_eq!(failure.state, "PS020", "{what}: {failure:?}");
        explained(&failure);
    }
    let bomb = sql_failure(describe(&mut client, &png_declaring(60_000, 60_000)));
    assert_eq!(bomb.state, "PS021", "{bomb:?}");
    explained(&bomb);
    client
        .batch_execute("SET pg_sight.max_image_size = '1kB'")
        .unwrap();
    let large = sql_failure(describe(&mut client, jpeg));
    assert_eq!(large.state, "PS021", "{large:?}");
    explained(&large);
    client
        .batch_execute("RESET pg_sight.max_image_size")
        .unwrap();

    assert!(!describe(&mut client, &one_pixel()).unwrap().is_empty());
    // One bad picture fails its statement, and says which it was.
    let images: Vec<&[u8]> = vec![jpeg, b"text", jpeg];
    let failure = sql_failure(client.query("SELECT blip_describe_batch($1)", &[&images]));
    assert_eq!(failure.state, "PS020");
    assert_eq!(
        cluster.model_server(&mut client),
        server,
        "the server lives on"
    );
}

#[test]
fn texts_of_all_sizes() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let norm: f64 = client
        .query_one("SELECT vector_norm(embed(''))", &[])
        .unwrap()
        .get(0);
    assert!((norm - 1.0).abs() < 1e-5);
    // What a model cannot take in is cut, as sentence-transformers cuts it.
    let same: bool = client
        .query_one(
            "SELECT embed(repeat('long text ', 10000)) = embed(repeat('long text ', 11000))",
            &[],
        )
        .unwrap()
        .get(0);
    assert!(same);
    let failure = sql_failure(client.query("SELECT embed(repeat('x', 2000000))", &[]));
    assert_eq!(failure.state, "PS022");
    explained(&failure);
    client
        .batch_execute("SET pg_sight.max_text_size = '1kB'")
        .unwrap();
    let failure = sql_failure(client.query("SELECT embed(repeat('x', 2000))", &[]));
    assert_eq!(failure.state, "PS022");
}

#[test]
fn models_that_are_not_there() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let failure = sql_failure(client.query("SELECT embed('x', 'it''s missing')", &[]));
    assert_eq!(failure.state, "PS010");
    assert_eq!(failure.message, "model \"it's missing\" is not registered");
    assert!(
        failure
            .hint
            .contains("sight_model_register('it''s missing'"),
        "{failure:?}"
    );
    client
        .batch_execute("SET pg_sight.embed_model = 'all-mpnet-base-v2'")
        .unwrap();
    let failure = sql_failure(client.query("SELECT embed('x')", &[]));
    assert_eq!(failure.state, "PS010");

    // Each function wants a model of its own kind.
    let query = format!("SELECT embed('x', '{CAPTIONER}')");
    let failure = sql_failure(client.query(&query, &[]));
    assert_eq!(failure.state, "PS012");
    explained(&failure);
    let query = format!("SELECT blip_describe('\\x00', model => '{ENCODER}')");
    assert_eq!(sql_failure(client.query(&query, &[])).state, "PS012");
}

#[test]
fn model_directories_that_are_broken() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let mut register = |directory: &str| {
        sql_failure(client.query("SELECT sight_model_register('broken', $1)", &[&directory]))
    };
    let missing = register("/nowhere/at/all");
    assert_eq!(missing.state, "PS010", "{missing:?}");
    explained(&missing);
    assert_eq!(register("relative/path").state, "22023");

    let captioner = demo_directory().join("captioner");
    for file in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "preprocessor_config.json",
    ] {
        let copy = cluster.copy_model(&captioner, &format!("without-{file}"));
        fs::remove_file(copy.join(file)).unwrap();
        let failure = register(copy.to_str().unwrap());
        assert_eq!(failure.state, "PS010", "{file}: {failure:?}");
        let all = format!("{} {}", failure.message, failure.detail);
        assert!(all.contains(file), "{file}: {failure:?}");

        let copy = cluster.copy_model(&captioner, &format!("truncated-{file}"));
        let whole = fs::read(copy.join(file)).unwrap();
        fs::write(copy.join(file), &whole[..whole.len() / 2]).unwrap();
        let failure = register(copy.to_str().unwrap());
        assert_eq!(failure.state, "PS011", "{file}: {failure:?}");
        let all = format!("{} {}", failure.message, failure.detail);
        assert!(all.contains(file), "{file}: {failure:?}");
    }
    // Nothing was registered.
    let models: i64 = client
        .query_one("SELECT count(*) FROM sight_models", &[])
        .unwrap()
        .get(0);
    assert_eq!(models, 2);
}

#[test]
fn a_model_that_breaks_after_it_was_registered() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let copy = cluster.copy_model(&demo_directory().join("captioner"), "doomed");
    client
        .execute(
            "SELECT sight_model_register('doomed', $1)",
            &[&copy.to_str().unwrap()],
        )
        .unwrap();
    let (_, image) = &samples()[0];
    let ask = "SELECT blip_describe($1, model => 'doomed')";
    assert!(client.query_one(ask, &[image]).is_ok());
    client
        .batch_execute("SELECT sight_model_unload('doomed')")
        .unwrap();
    fs::remove_dir_all(&copy).unwrap();
    let failure = sql_failure(client.query_one(ask, &[image]));
    assert_eq!(failure.state, "PS010");
    explained(&failure);
    assert!(
        describe(&mut client, image).is_ok(),
        "the other model is untouched"
    );
}

#[test]
fn vectors_of_the_wrong_dimension() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE TABLE product (image bytea, description text, desc_vec vector(768));
             CREATE TRIGGER describe BEFORE INSERT OR UPDATE OF image ON product FOR EACH ROW
                 EXECUTE FUNCTION sight_describe_trigger('image', 'description', 'desc_vec')",
        )
        .unwrap();
    let failure =
        sql_failure(client.execute("INSERT INTO product (description) VALUES ('x')", &[]));
    assert_eq!(failure.state, "22000");
    assert_eq!(failure.message, "expected 768 dimensions, not 384");
    explained(&failure);
    let rows: i64 = client
        .query_one("SELECT count(*) FROM product", &[])
        .unwrap()
        .get(0);
    assert_eq!(rows, 0);
    client
        .batch_execute("CREATE TABLE t (v vector(3)); INSERT INTO t VALUES ('[1,2,3]')")
        .unwrap();
    let failure = sql_failure(client.query("SELECT v <#> embed('x') FROM t", &[]));
    assert_eq!(failure.state, "22000");
}

#[test]
fn options_that_no_number_holds() {
    let cluster = Cluster::with_models();
    let mut client = cluster.client();
    let failure = sql_failure(client.query(
        "SELECT blip_describe('', options => '{\"temperature\": 1e400}')",
        &[],
    ));
    assert_eq!(failure.state, "22023");
    explained(&failure);
}
