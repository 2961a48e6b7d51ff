//! No fuzzer: runs the kept corpora of the machine again, and fails unless they reach every state that it has.
#![no_main]

use slackwater::session::pg::machine::Machine;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

libfuzzer_sys::fuzz_target!(init: prove(), |_data: &[u8]| {});

fn prove() {
    let mut reached = BTreeSet::new();
    let mut look = |machine: &Machine| reached.extend(machine.shape());
    for input in corpus("machine") {
        slackwater_fuzz::machine::scripted(&input, &mut look);
    }
    for input in corpus("machine_raw") {
        slackwater_fuzz::machine::raw(&input, &mut look);
    }
    let all = Machine::shapes();
    let missing: Vec<_> = all.difference(&reached).collect();
    let unknown: Vec<_> = reached.difference(&all).collect();
    assert!(missing.is_empty(), "never reached: {missing:#?}");
    assert!(unknown.is_empty(), "not known of: {unknown:#?}");
    eprintln!("the corpora reach all {} states of the machine", all.len());
}

fn corpus(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let files = fs::read_dir(&dir).expect("the corpus is kept");
    files.map(|file| fs::read(file.expect("a file").path()).expect("readable"))
}
