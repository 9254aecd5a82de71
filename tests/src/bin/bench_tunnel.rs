//! The tunnel bench, started by `tests/bench/tunnel`, which builds it and gets the programs that skyway is compared with.
//!
//! Exit codes: 0 measured, 1 some measurements failed, 2 nothing could be measured. A missed target changes none of them:
//! the report tells it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, anyhow, ensure};
use tests::bench::case::Case;
use tests::bench::machine::Machine;
use tests::bench::options::{Options, USAGE};
use tests::bench::subject::{Subject, Tools};
use tests::bench::{Bench, plot, table};
use tests::report::{NAMESPACES, Need, machine_has};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(&format!("bench_tunnel: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let options = Options::parse(env::args().skip(1)).map_err(|error| anyhow!(error))?;
    if options.help {
        print(&format!("{USAGE}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.list {
        print(&list())?;
        return Ok(ExitCode::SUCCESS);
    }
    let has_all = machine_has(&[NAMESPACES, &[Need::Tool("iperf3"), Need::Tool("wg"), Need::Tool("sysctl")]].concat());
    ensure!(has_all, "the bench needs what is named above");
    let tools = Tools::find(&options).map_err(|error| anyhow!(error))?;
    let machine = Machine::look(&tools);
    let bench = Bench::new(&options, &tools);

    say(&machine.to_string());
    for (subject, why) in &machine.missing {
        say(&format!("LEFT OUT: {}: {why}", subject.name()));
    }
    let measurements = bench.measurements();
    ensure!(measurements > 0, "no subject that is here takes part in these cases");
    say(&format!(
        "{} rounds of {}: {measurements} measurements, about {}",
        options.rounds,
        bench.subjects().iter().map(|subject| subject.name()).collect::<Vec<_>>().join(", "),
        minutes(bench.estimate()),
    ));
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;

    let start = Instant::now();
    let results = bench.run(&mut say);
    say(&format!("measured in {}", minutes(start.elapsed())));

    let report = table::report(&results, &machine, options.rounds, options.seconds);
    let drawing = plot::draw(&results, &machine, options.rounds);
    let json = format!("{:#}\n", results.to_json(&machine, options.rounds, options.seconds));
    for (file, text) in [("results.json", &json), ("table.md", &report), ("tunnel.svg", &drawing)] {
        let path = options.out.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    print(&report)?;
    say(&format!("written to {}: results.json, table.md, tunnel.svg", options.out.display()));
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn list() -> String {
    let mut text = String::from("subjects\n");
    for subject in Subject::ALL {
        text.push_str(&format!("  {:<14}{}\n", subject.name(), subject.about()));
    }
    text.push_str("cases\n");
    for case in Case::ALL {
        text.push_str(&format!("  {:<14}{}\n", case.name(), case.about()));
    }
    text
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("stdout")
}

/// To the person who waits; the report alone goes to stdout.
fn say(line: &str) {
    let _nobody_reads_it = writeln!(io::stderr(), "{line}");
}
