//! For the fuzzers: the names of what a machine can be in, to prove that their corpus reaches all of it.

use super::{INSIDE_COPY, Machine, Ours, Owed, Status};
use std::collections::BTreeSet;

/// A set of names of states.
type Shape = BTreeSet<String>;

impl Machine {
    /// What this machine is in.
    pub fn shape(&self) -> Shape {
        let mut out: Shape = self
            .owed
            .iter()
            .map(|owed| name(*owed).to_owned())
            .collect();
        out.extend(
            self.owed
                .front()
                .map(|owed| format!("first: {}", name(*owed))),
        );
        out.insert(format!("status {:?}", self.status));
        let flags = [
            ("batch open", self.batch_open),
            ("skipping", self.skipping),
            ("copy in", self.copy_in),
            ("copy out", self.copy_out),
            ("copy data", self.copy_data),
            ("swallowed before data", self.swallowed.0 > 0),
            ("swallowed behind data", self.swallowed.1 > 0),
            ("doubtful", self.doubtful > 0),
            ("dirty", self.dirty),
            ("busy", self.busy_since.is_some()),
            ("at rest", self.at_rest()),
            ("quiet", self.is_quiet()),
            ("in flight", self.is_in_flight()),
            ("may send in lock-step", self.may_send_in_lock_step()),
            ("unnamed kept", self.unnamed.to_restore().is_some()),
        ];
        out.extend(flags.iter().map(|(name, is)| format!("{name}: {is}")));
        out.extend(self.ambiguous.map(str::to_owned));
        out.insert(format!("blocker {:?}", self.wire_blocker()));
        out
    }

    /// All that a machine can be in.
    pub fn shapes() -> Shape {
        let mut out = Shape::new();
        for owed in OWED {
            out.insert(name(*owed).to_owned());
            // What is ignored outside COPY is dropped before it would come first, but for a batch's.
            out.insert(format!("first: {}", name(*owed)));
        }
        for status in [Status::Idle, Status::Transaction, Status::Failed] {
            out.insert(format!("status {status:?}"));
        }
        let flags = [
            "batch open",
            "skipping",
            "copy in",
            "copy out",
            "copy data",
            "swallowed before data",
            "swallowed behind data",
            "doubtful",
            "dirty",
            "busy",
            "at rest",
            "quiet",
            "in flight",
            "may send in lock-step",
            "unnamed kept",
        ];
        for flag in flags {
            out.insert(format!("{flag}: true"));
            out.insert(format!("{flag}: false"));
        }
        out.extend(DOUBTS.iter().map(|why| (*why).to_owned()));
        for blocker in [
            "None",
            "Some(Ambiguous)",
            "Some(Transaction)",
            "Some(Copy)",
            "Some(Statement)",
            "Some(UnnamedStatement)",
        ] {
            out.insert(format!("blocker {blocker}"));
        }
        out
    }
}

const OWED: &[Owed] = &[
    Owed::Query,
    Owed::Parse,
    Owed::ParseUnnamed,
    Owed::Bind,
    Owed::Close,
    Owed::CloseUnnamed,
    Owed::DescribeStatement,
    Owed::DescribePortal,
    Owed::Execute,
    Owed::Sync,
    Owed::FunctionCall,
    Owed::CopyData,
    Owed::CopyEnd,
    Owed::Ours(Ours::Prepare),
    Owed::Ours(Ours::Parse),
    Owed::Ours(Ours::Describe),
];

/// A kind that is missing here does not compile; put it into [`OWED`], too.
const fn name(owed: Owed) -> &'static str {
    match owed {
        Owed::Query => "Query",
        Owed::Parse => "Parse",
        Owed::ParseUnnamed => "Parse unnamed",
        Owed::Bind => "Bind",
        Owed::Close => "Close",
        Owed::CloseUnnamed => "Close unnamed",
        Owed::DescribeStatement => "Describe statement",
        Owed::DescribePortal => "Describe portal",
        Owed::Execute => "Execute",
        Owed::Sync => "Sync",
        Owed::FunctionCall => "FunctionCall",
        Owed::CopyData => "CopyData",
        Owed::CopyEnd => "CopyEnd",
        Owed::Ours(Ours::Prepare) => "PREPARE of Slackwater's own",
        Owed::Ours(Ours::Parse) => "Parse of Slackwater's own",
        Owed::Ours(Ours::Describe) => "Describe of Slackwater's own",
    }
}

/// The reasons to be in doubt for good.
const DOUBTS: &[&str] = &[
    INSIDE_COPY,
    "a message behind a COPY that failed with a Sync inside it",
    "a message of unknown type was sent",
    "ParseComplete without Parse",
    "CloseComplete without Close",
    "a row description that nobody asked for",
    "a parameter description that nobody asked for",
    "a completion that nobody asked for",
    "CopyOutResponse without a statement",
    "FunctionCallResponse without FunctionCall",
    "the server sent a message of unknown type",
    "COPY without a statement",
    "CommandComplete without a statement",
    "ReadyForQuery that nobody asked for",
    "ReadyForQuery with an unknown status",
    "an error that no request is known for",
    "a reply out of order",
];
