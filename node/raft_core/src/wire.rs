//! Bytes of peers: what is let through to raft-rs.
//!
//! raft-rs trusts its input: a missing entry is an index out of bounds, a message of term 0 skips the
//! term checks as if it were local. Only bytes of authenticated peers come here at all; this module
//! still refuses whatever no correct peer sends, so that a broken one cannot stop a replica.
//!
//! It also refuses protobuf groups before parsing. rust-protobuf 2 is under an advisory for unbounded
//! recursion into unknown ones (RUSTSEC-2024-0437), and a stack overflow cannot be caught. 2.28 answers
//! a group within a group with an error, as far as tried; this walk is what is relied upon.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::members;

/// Which fields of a message hold messages, as far as groups are looked for.
pub struct Shape(&'static [(u64, &'static Shape)]);

pub static LEAF: Shape = Shape(&[]);
pub static CONF_CHANGE: Shape = Shape(&[(2, &LEAF)]);
static METADATA: Shape = Shape(&[(1, &LEAF)]);
static SNAPSHOT: Shape = Shape(&[(2, &METADATA)]);
static MESSAGE: Shape = Shape(&[(7, &LEAF), (9, &SNAPSHOT)]);

/// Terms and indexes stay below this, so that adding to them cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or("message ends early")?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("number too long".into())
}

/// Walks the wire format of `bytes` and refuses groups and fields that run past the end.
pub fn refuse_groups(bytes: &[u8], shape: &Shape) -> Result<(), String> {
    let mut at = 0;
    while at < bytes.len() {
        let tag = varint(bytes, &mut at)?;
        let skip = match tag & 7 {
            0 => {
                varint(bytes, &mut at)?;
                0
            }
            1 => 8,
            2 => varint(bytes, &mut at)?,
            5 => 4,
            other => return Err(format!("wire type {other} is not accepted")),
        };
        if skip > (bytes.len() - at) as u64 {
            return Err("message ends early".into());
        }
        let until = at + skip as usize;
        if tag & 7 == 2 {
            let nested = shape.0.iter().find(|(field, _)| *field == tag >> 3);
            if let Some((_, inner)) = nested {
                refuse_groups(&bytes[at..until], inner)?;
            }
        }
        at = until;
    }
    Ok(())
}

/// Parses a message; its entries share one buffer.
pub fn parse(bytes: &[u8]) -> Result<Message, String> {
    refuse_groups(bytes, &MESSAGE)?;
    let shared = Bytes::copy_from_slice(bytes);
    Message::parse_from_carllerche_bytes(&shared).map_err(|error| error.to_string())
}

/// Refuses what no correct peer sends to `replica_id`.
pub fn check(message: &Message, replica_id: u64) -> Result<(), String> {
    use MessageType::*;
    if message.to != replica_id {
        return Err(format!("addressed to replica {}", message.to));
    }
    if message.from == 0 || message.from == replica_id {
        return Err(format!("sent by replica {}", message.from));
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    if numbers.iter().any(|number| *number >= NUMBER_MAX) {
        return Err("a number out of range".into());
    }
    let kind = message.get_msg_type();
    match kind {
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum => {
            Err(format!("{kind:?} is a local message"))
        }
        MsgPropose | MsgTransferLeader => Err(format!("{kind:?} is not taken from peers")),
        MsgReadIndex => check_read(message, true),
        _ if message.term == 0 => Err(format!("{kind:?} without a term")),
        MsgReadIndexResp => check_read(message, false),
        MsgAppend => check_append(message),
        MsgSnapshot => check_snapshot(message),
        MsgAppendResponse if message.request_snapshot != 0 => {
            Err("asks for a snapshot, which no replica does".into())
        }
        _ => Ok(()),
    }
}

/// A read asks with its context as the only entry, and is answered with the same.
fn check_read(message: &Message, question: bool) -> Result<(), String> {
    if question && message.term != 0 {
        return Err("a read index question with a term".into());
    }
    match message.get_entries() {
        [entry] if !entry.data.is_empty() => Ok(()),
        _ => Err("a read index message without its context".into()),
    }
}

fn check_append(message: &Message) -> Result<(), String> {
    let mut term = message.log_term;
    for (place, entry) in message.get_entries().iter().enumerate() {
        if entry.index != message.index + 1 + place as u64 {
            return Err(format!("entry {} is out of place", entry.index));
        }
        if entry.term < term || entry.term > message.term {
            return Err(format!("entry {} has term {}", entry.index, entry.term));
        }
        term = entry.term;
    }
    Ok(())
}

fn check_snapshot(message: &Message) -> Result<(), String> {
    let metadata = message.get_snapshot().get_metadata();
    if metadata.index == 0 || metadata.index >= NUMBER_MAX {
        return Err("a snapshot without a usable index".into());
    }
    if metadata.term == 0 || metadata.term > message.term {
        return Err(format!("a snapshot of term {}", metadata.term));
    }
    members::check(metadata.get_conf_state())?;
    if metadata.get_conf_state().get_voters().is_empty() {
        return Err("a snapshot without voters".into());
    }
    Ok(())
}
