//! Member configurations and changes of them: parse, check, canonical bytes.
//!
//! raft-rs keeps members in hash sets, so the order in which it lists them is an accident. Everything
//! that leaves here is sorted: two replicas that agree on the members agree on the bytes.

use std::collections::BTreeSet;

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Entry, EntryType,
};

use crate::failure::{Failure, Outcome};
use crate::wire;

fn sorted(ids: &[u64]) -> Vec<u64> {
    ids.iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Sorts every list of `state`.
pub fn canonical(state: &ConfState) -> ConfState {
    let mut out = ConfState::default();
    out.set_voters(sorted(state.get_voters()));
    out.set_learners(sorted(state.get_learners()));
    out.set_voters_outgoing(sorted(state.get_voters_outgoing()));
    out.set_learners_next(sorted(state.get_learners_next()));
    out.auto_leave = state.auto_leave;
    out
}

/// Canonical bytes of `state`.
pub fn encode(state: &ConfState) -> Vec<u8> {
    canonical(state)
        .write_to_bytes()
        .expect("a ConfState has no required fields")
}

/// Parses and checks a configuration. Empty bytes are the empty configuration (a replica that waits for a snapshot).
pub fn decode(bytes: &[u8]) -> Outcome<ConfState> {
    wire::refuse_groups(bytes, &wire::LEAF).map_err(Failure::Invalid)?;
    let state = ConfState::parse_from_bytes(bytes)
        .map_err(|error| Failure::Invalid(format!("not a member configuration: {error}")))?;
    check(&state).map_err(Failure::Invalid)?;
    Ok(canonical(&state))
}

/// The rules of raft-rs's restore, as an error instead of its panic.
pub fn check(state: &ConfState) -> Result<(), String> {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    let voters = set(state.get_voters());
    let outgoing = set(state.get_voters_outgoing());
    let learners = set(state.get_learners());
    let next = set(state.get_learners_next());
    let any_zero = [&voters, &outgoing, &learners, &next]
        .iter()
        .any(|ids| ids.contains(&0));
    if any_zero {
        return Err("0 is no replica id".into());
    }
    if voters.is_empty() && !(outgoing.is_empty() && learners.is_empty() && next.is_empty()) {
        return Err("members without a voter".into());
    }
    if learners
        .iter()
        .any(|id| voters.contains(id) || outgoing.contains(id))
    {
        return Err("a replica is both learner and voter".into());
    }
    if !next.is_subset(&outgoing) || !next.is_disjoint(&voters) {
        return Err("learners_next holds a replica that is not only an outgoing voter".into());
    }
    if outgoing.is_empty() && state.auto_leave {
        return Err("auto_leave outside a joint configuration".into());
    }
    Ok(())
}

pub fn is_empty(state: &ConfState) -> bool {
    state.get_voters().is_empty() && state.get_learners().is_empty()
}

/// Whether a replica with this configuration knows `replica_id` as a member.
pub fn has(state: &ConfState, replica_id: u64) -> bool {
    state.get_voters().contains(&replica_id)
        || state.get_learners().contains(&replica_id)
        || state.get_voters_outgoing().contains(&replica_id)
}

/// What a change does to one replica.
pub fn change_type(kind: u8) -> Outcome<ConfChangeType> {
    match kind {
        0 => Ok(ConfChangeType::AddNode),
        1 => Ok(ConfChangeType::RemoveNode),
        2 => Ok(ConfChangeType::AddLearnerNode),
        _ => Err(Failure::Invalid(format!("unknown kind of change {kind}"))),
    }
}

fn transition_of(name: &str) -> Outcome<ConfChangeTransition> {
    match name {
        "auto" => Ok(ConfChangeTransition::Auto),
        "implicit" => Ok(ConfChangeTransition::Implicit),
        "explicit" => Ok(ConfChangeTransition::Explicit),
        _ => Err(Failure::Invalid(format!("unknown transition {name:?}"))),
    }
}

/// Builds a change; each replica at most once, no id 0.
pub fn change_of(changes: &[(u8, u64)], context: &[u8], transition: &str) -> Outcome<ConfChangeV2> {
    let mut seen = BTreeSet::new();
    let mut change = ConfChangeV2::default();
    change.set_transition(transition_of(transition)?);
    change.set_context(bytes::Bytes::copy_from_slice(context));
    for &(kind, replica_id) in changes {
        if replica_id == 0 || !seen.insert(replica_id) {
            return Err(Failure::Invalid(format!(
                "replica id {replica_id} is 0 or named twice"
            )));
        }
        let mut single = ConfChangeSingle::default();
        single.set_change_type(change_type(kind)?);
        single.node_id = replica_id;
        change.mut_changes().push(single);
    }
    Ok(change)
}

/// The change that a committed configuration entry carries; both kinds of entry become version 2.
pub fn change_in(kind: EntryType, data: &[u8]) -> Outcome<ConfChangeV2> {
    let broken = |error| Failure::Invalid(format!("not a configuration change: {error}"));
    wire::refuse_groups(data, &wire::CONF_CHANGE).map_err(Failure::Invalid)?;
    if kind == EntryType::EntryConfChangeV2 {
        return ConfChangeV2::parse_from_bytes(data).map_err(broken);
    }
    let old = ConfChange::parse_from_bytes(data).map_err(broken)?;
    let mut single = ConfChangeSingle::default();
    single.set_change_type(old.get_change_type());
    single.node_id = old.node_id;
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(single);
    change.set_context(old.get_context().to_vec().into());
    Ok(change)
}

pub fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}
