//! What a test needs of the machine, and a loud word when the machine has it not.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, thread};

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root, and the right to make network namespaces.
    Namespaces,
    /// The device that TUN mode opens.
    Tun,
    /// A program on the path.
    Tool(&'static str),
}

/// What every suite in namespaces needs.
pub const NAMESPACES: &[Need] = &[Need::Namespaces, Need::Tun, Need::Tool("ip"), Need::Tool("nft"), Need::Tool("ping")];

/// Whether the machine has all of `needs`. If not, says so and the test is to return; where skips are forbidden
/// (`CI` or `SKYWAY_NO_SKIP` is set) the test fails here.
#[track_caller]
pub fn machine_has(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find_map(|need| need.missing()) else { return true };
    let forbidden = ["CI", "SKYWAY_NO_SKIP"].into_iter().find(|name| env::var_os(name).is_some());
    if let Some(name) = forbidden {
        panic!("{missing}, and {name} forbids to skip");
    }
    let test = thread::current().name().unwrap_or("a test").to_owned();
    // Not by a macro: the test harness would keep to itself what a macro prints.
    let _unheard = writeln!(io::stderr(), "SKIPPED: {test}: {missing}");
    false
}

/// Whether the tests run as root and may therefore drop privileges.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Namespaces if !is_root() => Some("not root, so no network namespaces".into()),
            Self::Namespaces => {
                let made = quiet(Command::new("unshare").args(["--net", "--mount", "true"]));
                (!made).then(|| "this machine allows no network namespaces".into())
            }
            Self::Tun => fs::File::open("/dev/net/tun").err().map(|error| format!("/dev/net/tun: {error}")),
            Self::Tool(name) => (!on_path(name)).then(|| format!("{name} is not installed")),
        }
    }
}

fn quiet(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| is_file(&folder.join(program)))
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}
