//! Election timeouts from a seeded generator, so that the same calls give the same run.
//!
//! raft-rs draws its timeouts from the operating system's randomness; the group overrides each of
//! them with a draw from here. The seed is mixed with the ids of group and replica: replicas that a
//! careless caller seeds alike must still not time out in step for ever.

/// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub struct Timeouts {
    state: u64,
    election_ticks: u64,
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Timeouts {
    pub fn new(seed: u64, group_id: u64, replica_id: u64, election_ticks: usize) -> Self {
        let state = mixed(mixed(mixed(seed).wrapping_add(group_id)).wrapping_add(replica_id));
        Timeouts {
            state,
            election_ticks: election_ticks as u64,
        }
    }

    /// The next timeout in ticks, in `[election_ticks, 2 * election_ticks)`.
    pub fn draw(&mut self) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (self.election_ticks + mixed(self.state) % self.election_ticks) as usize
    }
}
