//! Readers of data: right on good files, plain or gzipped, and on damaged ones an error that says where, never a panic.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use scalebio::Error;
use scalebio::problems::{Images, Label, Table};
use tempfile::TempDir;

pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn file(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("data");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn table(columns: usize, features: &[f64], labels: &[f64]) -> Table {
    Table {
        columns,
        features: features.to_vec(),
        labels: labels.to_vec(),
    }
}

/// IDX of unsigned bytes.
fn idx(dims: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    for &dim in dims {
        file.extend((dim as u32).to_be_bytes());
    }
    file.extend(bytes);
    file
}

/// Writes images as a collection's folder does, `side` pixels high; the training set plain, the test set gzipped.
pub fn write_folder(folder: &Path, sets: [&Images; 2], side: usize) {
    for (part, set) in ["train", "t10k"].into_iter().zip(sets) {
        let count = set.images();
        let images = idx(&[count, side, set.size / side], &set.pixels);
        let labels = idx(&[count], &set.labels);
        for (name, bytes) in [("images-idx3", images), ("labels-idx1", labels)] {
            let name = format!("{part}-{name}-ubyte");
            let (name, bytes) = match part {
                "train" => (name, bytes),
                _ => (format!("{name}.gz"), gzipped(&bytes)),
            };
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

/// Missing features are 0; comments, blank lines, both ends of line and compression make no difference.
#[test]
fn libsvm_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = "+1 1:0.5 3:-2e1 # first\n\n# none\r\n-1 2:1\r\n1\n";
    let expected = table(
        3,
        &[0.5, 0.0, -20.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        &[1.0, -1.0, 1.0],
    );
    for bytes in [text.as_bytes().to_vec(), gzipped(text.as_bytes())] {
        let read = Table::read_libsvm(file(&folder, &bytes)).unwrap();
        assert_eq!(read, expected);
        assert_eq!(read.samples(), 3);
    }
}

/// With and without a header, quotes and an end of line at the end; the label is where it is said to be.
#[test]
fn csv_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "1,2.5,7\n-3,4e-1,5\n",
        "a,b,\"c,\nd\"\n1,2.5,7\n-3,4e-1,5",
        "\"1\", 2.5 ,7\r\n-3,\"4e-1\",5\r\n",
    ] {
        for bytes in [text.as_bytes().to_vec(), gzipped(text.as_bytes())] {
            let path = file(&folder, &bytes);
            let last = Table::read_csv(&path, Label::Last).unwrap();
            assert_eq!(
                last,
                table(2, &[1.0, 2.5, -3.0, 0.4], &[7.0, 5.0]),
                "{text}"
            );
            let first = Table::read_csv(&path, Label::First).unwrap();
            assert_eq!(
                first,
                table(2, &[2.5, 7.0, 0.4, 5.0], &[1.0, -3.0]),
                "{text}"
            );
        }
    }
}

/// A folder of images is read as it was written, plain and gzipped.
#[test]
fn image_folders_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [Images::synthetic(7, 1), Images::synthetic(3, 2)];
    write_folder(folder.path(), sets.each_ref(), 9);
    assert_eq!(Images::folder(folder.path()).unwrap(), sets);
    std::fs::remove_file(folder.path().join("t10k-labels-idx1-ubyte.gz")).unwrap();
    let message = Images::folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("t10k-labels-idx1-ubyte.gz"), "{message}");
}

/// An error of a text file names file and line, and what stands there.
#[test]
fn damaged_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    type Read = fn(&Path) -> scalebio::Result<Table>;
    let libsvm: Read = |path| Table::read_libsvm(path);
    let csv: Read = |path| Table::read_csv(path, Label::Last);
    let cases: [(Read, &str, usize, &str); 16] = [
        (libsvm, "1 1:2\nx 1:2\n", 2, "label: `x`"),
        (libsvm, "1 1:2\n\n1 1:y\n", 3, "feature 1: `y`"),
        (libsvm, "1 1:nan\n", 1, "`nan` is not a finite number"),
        (libsvm, "inf 1:1\n", 1, "`inf`"),
        (libsvm, "1 0:2\n", 1, "`0` is not an index"),
        (libsvm, "1 70000:2\n", 1, "65536"),
        (libsvm, "1 99999999999999999999:2\n", 1, "not an index"),
        (libsvm, "1 -1:2\n", 1, "`-1`"),
        (libsvm, "1 qid:2 1:2\n", 1, "`qid`"),
        (libsvm, "1 2:1 2:1\n", 1, "2 follows 2"),
        (libsvm, "1 1:1\n1 5\n", 2, "index:value"),
        (csv, "1,2\n3,x\n", 2, "column 2: `x`"),
        (csv, "1,2\n3\n", 2, "1 fields, but the first row has 2"),
        (csv, "\"a\nb\",c\n1,2\n3,4,5\n", 4, "3 fields"),
        (csv, "1,x\n", 1, "column 2: `x`"),
        (csv, "1,2\n\n3,inf\n", 3, "`inf`"),
    ];
    for (read, text, line, expected) in cases {
        for bytes in [text.as_bytes().to_vec(), gzipped(text.as_bytes())] {
            let path = file(&folder, &bytes);
            match read(&path).unwrap_err() {
                Error::Record {
                    path: named,
                    line: at,
                    message,
                } => {
                    assert_eq!((named, at), (path, line), "{text:?}: {message}");
                    assert!(message.contains(expected), "{text:?}: {message}");
                }
                other => panic!("{text:?}: {other}"),
            }
        }
    }
    for (read, text) in [
        (libsvm, ""),
        (libsvm, "# x\n"),
        (libsvm, "1\n2\n"),
        (csv, ""),
        (csv, "a,b\n"),
        (csv, "1\n"),
    ] {
        let message = read(&file(&folder, text.as_bytes()))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("at least 1 of both"),
            "{text:?}: {message}"
        );
    }
    let long = format!("1 {}\n", "x".repeat(1 << 20));
    let message = libsvm(&file(&folder, long.as_bytes()))
        .unwrap_err()
        .to_string();
    assert!(message.len() < 300, "{message}");
    let not_text = libsvm(&file(&folder, b"1 1:2\n\xff 1:1\n"))
        .unwrap_err()
        .to_string();
    assert!(
        not_text.contains("data:2") && not_text.contains("UTF-8"),
        "{not_text}"
    );
    assert!(matches!(
        libsvm(Path::new("/nowhere")),
        Err(Error::Io { .. })
    ));
}

/// Files of images that are cut, too long, of another kind, or do not fit each other.
#[test]
fn damaged_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let images = idx(&[2, 2, 3], &[7; 12]);
    let labels = idx(&[2], &[0, 9]);
    let read = |images: &[u8], labels: &[u8]| {
        std::fs::write(path("images"), images).unwrap();
        std::fs::write(path("labels"), labels).unwrap();
        Images::read(path("images"), path("labels"))
    };
    let good = read(&gzipped(&images), &labels).unwrap();
    assert_eq!((good.images(), good.size, good.pixels[0]), (2, 6, 7));

    let mut huge = images.clone();
    huge[4..16].fill(0xff);
    let long = [&images[..], &[1]].concat();
    let cut = gzipped(&images);
    let cases: [(&[u8], &[u8], &str, &str); 11] = [
        (&labels, &labels, "images", "starts with [00, 00, 08, 01]"),
        (&images, &images, "labels", "starts with [00, 00, 08, 03]"),
        (b"", &labels, "images", "starts with []"),
        (b"<html>", &labels, "images", "3c, 68"),
        (
            &images[..10],
            &labels,
            "images",
            "ends in its header, after 10 bytes",
        ),
        (
            &images[..20],
            &labels,
            "images",
            "has 4 bytes behind its header",
        ),
        (&long, &labels, "images", "has 13 bytes"),
        (&huge, &labels, "images", "4294967295"),
        (&images, &idx(&[3], &[0; 3]), "labels", "has 3 labels, but"),
        (&images, &idx(&[2], &[1, 10]), "labels", "label 1 is 10"),
        (&cut[..cut.len() - 9], &labels, "images", "gzip"),
    ];
    for (images, labels, file, expected) in cases {
        let message = read(images, labels).unwrap_err().to_string();
        let named = path(file);
        assert!(
            message.starts_with(named.to_str().unwrap()) && message.contains(expected),
            "{message}"
        );
    }
    for dims in [[0, 2, 3], [2, 0, 3]] {
        let labels = idx(&[dims[0]], &[0, 0][..dims[0]]);
        assert!(
            read(&idx(&dims, &[]), &labels)
                .unwrap_err()
                .to_string()
                .contains("at least 1")
        );
    }
}

/// Bytes that look like one of the formats.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::collection::vec(
        prop::sample::select(&b"0123456789.:,-+e \n\r\"#qx\xff"[..]),
        0..120,
    );
    let binary = prop::collection::vec(any::<u8>(), 0..60);
    let started = |start: &'static [u8]| {
        let rest = prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..40);
        rest.prop_map(move |rest| [start, &rest].concat())
    };
    prop_oneof![
        text.clone(),
        binary,
        started(&[0, 0, 8, 3, 0, 0, 0, 1]),
        started(&[0, 0, 8, 1, 0, 0, 0]),
        started(&[0x1f, 0x8b, 8, 0]),
        text.prop_map(|text| gzipped(&text)),
    ]
}

proptest! {
    /// No file makes a reader panic, nor return parts that do not fit each other.
    #[test]
    fn no_file_makes_a_reader_panic(bytes in bytes(), other in bytes(), cut in 0..200_usize) {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&bytes[..], &bytes[..cut.min(bytes.len())]] {
            let path = file(&folder, bytes);
            let tables = [
                Table::read_libsvm(&path),
                Table::read_csv(&path, Label::First),
                Table::read_csv(&path, Label::Last),
            ];
            for table in tables.into_iter().flatten() {
                prop_assert!(table.samples() > 0 && table.columns > 0);
                prop_assert_eq!(table.features.len(), table.samples() * table.columns);
                prop_assert!(table.features.iter().chain(&table.labels).all(|v| v.is_finite()));
            }
            let labels = folder.path().join("labels");
            std::fs::write(&labels, &other).unwrap();
            if let Ok(images) = Images::read(&path, &labels) {
                prop_assert_eq!(images.pixels.len(), images.images() * images.size);
            }
        }
    }

    /// What is written is read: every number exactly, in both text formats, compressed or not.
    #[test]
    fn tables_are_read_as_they_were_written(
        columns in 1..5_usize,
        values in prop::collection::vec(prop_oneof![Just(0.0), -1e9..1e9_f64, any::<f64>().prop_filter("finite", |v| v.is_finite())], 5..40),
        zip: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<&[f64]> = values.chunks_exact(columns + 1).collect();
        prop_assume!(!rows.is_empty());
        let (mut csv, mut libsvm) = (String::new(), String::new());
        for row in &rows {
            let texts: Vec<String> = row.iter().map(f64::to_string).collect();
            csv += &(texts.join(",") + "\n");
            libsvm += &texts[0];
            for (index, value) in texts[1..].iter().enumerate() {
                libsvm += &format!(" {}:{value}", index + 1);
            }
            libsvm += "\n";
        }
        let features: Vec<f64> = rows.iter().flat_map(|row| &row[1..]).copied().collect();
        let labels: Vec<f64> = rows.iter().map(|row| row[0]).collect();
        let expected = table(columns, &features, &labels);
        let write = |text: &str| if zip { gzipped(text.as_bytes()) } else { text.as_bytes().to_vec() };
        prop_assert_eq!(&Table::read_csv(file(&folder, &write(&csv)), Label::First).unwrap(), &expected);
        prop_assert_eq!(&Table::read_libsvm(file(&folder, &write(&libsvm))).unwrap(), &expected);
    }
}
