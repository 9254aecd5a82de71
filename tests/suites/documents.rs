//! What the documents show is true: their YAML is good, and the map names the files that there are.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::keys::{Keys, preshared};
use tests::skyway::binary;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// Every `<!-- checked: NAME -->` and the block behind it.
fn marked(document: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(document)).expect("a document");
    let mut blocks = Vec::new();
    for part in text.split("<!-- checked: ").skip(1) {
        let (name, rest) = part.split_once(" -->").expect("the end of the mark");
        let block = rest.trim_start().strip_prefix("```yaml\n").expect("a YAML block behind the mark");
        let (yaml, _) = block.split_once("\n```").expect("the end of the block");
        blocks.push((name.to_owned(), format!("{yaml}\n")));
    }
    blocks
}

fn write_secret(path: &Path) {
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("key") => Keys::generate().private,
        Some("psk") => preshared(),
        _ => "hunter2".to_owned(),
    };
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("mode");
}

#[test]
fn every_example_is_a_good_file() {
    let mut names = BTreeSet::new();
    for document in ["README.md", "docs/configuration.md", "docs/operations.md", "docs/relay.md"] {
        for (name, yaml) in marked(document) {
            assert!(names.insert(name.clone()), "{name} is there twice");
            let folder = tempfile::tempdir().expect("a folder");
            // Secrets lie in /etc/skyway for the reader, and beside the file here.
            let place = format!("{}/", folder.path().display());
            let yaml = yaml.replace("/etc/skyway/", &place);
            for secret in yaml.split(|c: char| c.is_whitespace() || "{},\"".contains(c)).filter(|word| word.starts_with(&place)) {
                write_secret(Path::new(secret));
            }
            let file = folder.path().join("skyway.yaml");
            fs::write(&file, &yaml).expect("written");
            let checked = Command::new(binary()).args(["check", "-c"]).arg(&file).output().expect("run");
            assert!(checked.status.success(), "{document}, {name}:\n{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    for expected in ["readme-aws", "readme-vnet"] {
        assert!(names.contains(expected), "{expected} is not among {names:?}");
    }
}

#[test]
fn the_map_names_every_source_file() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a document");
    let mut missing = Vec::new();
    for part in ["tunnel/src", "routing/src", "gateway/src"] {
        let mut folders = vec![root().join(part)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                if name.ends_with(".rs") && name != "tests.rs" && name != "mod.rs" && !map.contains(&name) {
                    missing.push(path.strip_prefix(root()).expect("inside").display().to_string());
                }
            }
        }
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name {missing:?}");
}

#[test]
fn every_reason_and_metric_is_explained() {
    let operations = fs::read_to_string(root().join("docs/operations.md")).expect("a document");
    let missing: Vec<&str> =
        tunnel::DropReason::ALL.iter().map(|reason| reason.label()).filter(|label| !operations.contains(&format!("`{label}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain the drops {missing:?}");
    let metrics = fs::read_to_string(root().join("gateway/src/admin/metrics.rs")).expect("a file");
    let names: BTreeSet<&str> = metrics.split('"').filter(|word| word.starts_with("skyway_") && !word.contains(' ')).collect();
    let missing: Vec<&&str> = names.iter().filter(|name| !operations.contains(**name)).collect();
    assert!(!names.is_empty() && missing.is_empty(), "docs/operations.md does not explain the metrics {missing:?}");
}
