//! nginx as the server behind the gateways: software that knows nothing of ours.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Process;
use crate::random::Random;
use crate::tls::Authority;
use crate::{BLOB, HUB, seconds, wait_for};

/// An nginx with TLS on port 443 of every address. `/` is the name that TLS asked for, `/download` ten megabytes.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    folder: TempDir,
}

/// Of `/download`.
pub const DOWNLOAD_BYTES: usize = 10_000_000;

/// A single process in the foreground, so that killing it leaves no worker behind.
const CONFIG: &str = r#"
daemon off;
master_process off;
pid FOLDER/nginx.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
    access_log FOLDER/access.log;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server {
        listen 443 ssl;
        listen [::]:443 ssl;
        server_name NAMES;
        ssl_certificate FOLDER/certificate.pem;
        ssl_certificate_key FOLDER/key.pem;
        root FOLDER/www;
        location = / {
            default_type text/plain;
            return 200 "$ssl_server_name\n";
        }
    }
}
"#;

impl Nginx {
    /// Starts one inside `namespace`, with a certificate of `authority` for the names of the suites, and waits until it
    /// answers.
    #[track_caller]
    pub fn start(namespace: &Namespace, authority: &Authority) -> Self {
        let folder = tempfile::tempdir().expect("a folder for nginx");
        let path = folder.path().to_str().expect("a plain path");
        let identity = authority.issue(&[HUB, BLOB]);
        let config = CONFIG.replace("FOLDER", path).replace("NAMES", &format!("{HUB} {BLOB}"));
        fs::create_dir(folder.path().join("www")).expect("a folder to serve");
        for (file, content) in [
            ("nginx.conf", config.as_bytes()),
            ("certificate.pem", identity.certificate_pem.as_bytes()),
            ("key.pem", identity.key_pem.as_bytes()),
            ("www/download", Random::new(10).bytes(DOWNLOAD_BYTES).as_slice()),
        ] {
            fs::write(folder.path().join(file), content).expect("a file of nginx");
        }
        let config_path = format!("{path}/nginx.conf");
        let process = Process::start("nginx", &mut namespace.command(&["nginx", "-p", path, "-c", &config_path]));
        wait_for("nginx answers", seconds(10), || {
            namespace.exec(&["curl", "-sk", "-o", "/dev/null", "--max-time", "2", "https://127.0.0.1/"]).code == Some(0)
        });
        Self { _process: process, folder }
    }

    /// The file behind `/download`.
    pub fn download(&self) -> PathBuf {
        self.folder.path().join("www/download")
    }
}
