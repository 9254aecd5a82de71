//! What kind of trouble a handshake has. WireGuard is silent by design; a gateway's operator must not be left so.
//!
//! ```text
//!  we send initiations, nothing comes back ............ NoAnswer        (filtered, wrong address, or our key unknown there)
//!  an answer comes back that does not open ............ AnswerDoesNotOpen (preshared key differs)
//!  the same, while the old session still carries ..... RekeyUnanswered (the peer no longer knows our key, or we its)
//!  we answer, and no data ever follows ................ NotConfirmed    (the same, seen from the responder)
//!  the peer's address sends handshakes for another key  OtherKey        (the peer has a wrong public key for us)
//! ```
//! Initiations from keys that are not configured belong to no peer; the engine counts them apart.

use std::time::Instant;

/// Answers that went unconfirmed before it counts as trouble: one may simply be lost.
const UNCONFIRMED_BEFORE_TROUBLE: u32 = 2;
/// Initiations without an answer before it counts as trouble (5 s apart).
const UNANSWERED_BEFORE_TROUBLE: u32 = 2;
/// The same while data comes: a lost datagram or two is no trouble yet.
const UNANSWERED_REKEYS_BEFORE_TROUBLE: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    NoAnswer { initiations: u32 },
    RekeyUnanswered { initiations: u32 },
    AnswerDoesNotOpen { answers: u32 },
    NotConfirmed { answers: u32 },
    OtherKey { initiations: u32 },
}

/// One peer's handshakes since its last good session.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLog {
    /// Initiations sent without an answer.
    pub(crate) unanswered: u32,
    /// The same, whatever else was heard of the peer meanwhile.
    unanswered_rekeys: u32,
    /// When the first of them was sent.
    pub(crate) since: Option<Instant>,
    refused_answers: u32,
    unconfirmed_answers: u32,
    other_key: u32,
}

impl HandshakeLog {
    pub(crate) fn initiation_sent(&mut self, now: Instant) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered_rekeys = self.unanswered_rekeys.saturating_add(1);
        self.since.get_or_insert(now);
    }

    pub(crate) const fn answer_refused(&mut self) {
        // It does not open, but somebody who knows our session index is there.
        self.unanswered = 0;
        self.unanswered_rekeys = 0;
        self.refused_answers = self.refused_answers.saturating_add(1);
    }

    pub(crate) const fn answer_sent(&mut self) {
        self.unconfirmed_answers = self.unconfirmed_answers.saturating_add(1);
    }

    /// Answers in a row that nobody confirmed.
    pub(crate) const fn unconfirmed_answers(&self) -> u32 {
        self.unconfirmed_answers
    }

    pub(crate) const fn addressed_to_other_key(&mut self) {
        self.other_key = self.other_key.saturating_add(1);
    }

    /// Something authenticated came from the peer: it is there, whatever became of our initiations.
    pub(crate) const fn heard(&mut self) {
        self.unanswered = 0;
        self.since = None;
    }

    pub(crate) const fn is_unanswered(&self) -> bool {
        self.unanswered >= UNANSWERED_BEFORE_TROUBLE
    }

    /// A session stands: whatever was wrong is over.
    pub(crate) fn session_confirmed(&mut self) {
        *self = Self::default();
    }

    /// The most telling trouble first: what came back says more than that nothing did.
    pub(crate) const fn trouble(&self) -> Option<Trouble> {
        if self.refused_answers > 0 {
            Some(Trouble::AnswerDoesNotOpen { answers: self.refused_answers })
        } else if self.other_key > 0 {
            Some(Trouble::OtherKey { initiations: self.other_key })
        } else if self.unconfirmed_answers >= UNCONFIRMED_BEFORE_TROUBLE {
            Some(Trouble::NotConfirmed { answers: self.unconfirmed_answers })
        } else if self.is_unanswered() {
            Some(Trouble::NoAnswer { initiations: self.unanswered })
        } else if self.unanswered_rekeys >= UNANSWERED_REKEYS_BEFORE_TROUBLE {
            Some(Trouble::RekeyUnanswered { initiations: self.unanswered_rekeys })
        } else {
            None
        }
    }
}

impl Trouble {
    /// A stable word for metrics and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoAnswer { .. } => "no_answer",
            Self::RekeyUnanswered { .. } => "rekey_unanswered",
            Self::AnswerDoesNotOpen { .. } => "answer_does_not_open",
            Self::NotConfirmed { .. } => "not_confirmed",
            Self::OtherKey { .. } => "other_key",
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAnswer { initiations } => write!(
                f,
                "{initiations} handshake initiations sent, no answer: the UDP port is filtered on the way, nothing listens there, the peer does not know our public key, or `public_key` here is not the peer's"
            ),
            Self::RekeyUnanswered { initiations } => write!(
                f,
                "{initiations} handshake initiations that were to renew the session got no answer, though the old one still carries data; it ends 180 s after \
                 its own handshake: one side has another key than the other believes"
            ),
            Self::AnswerDoesNotOpen { answers } => {
                write!(f, "{answers} handshake answers came back that do not open: the preshared keys of the two sides differ")
            }
            Self::NotConfirmed { answers } => write!(
                f,
                "{answers} handshakes answered, none confirmed: our answers do not reach the peer, or the preshared keys of the two sides differ"
            ),
            Self::OtherKey { initiations } => write!(
                f,
                "{initiations} handshakes from this peer's address were made for another public key than ours: the peer's configuration holds a wrong key for this gateway"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a new user's trial: a private key was replaced on one side, and both said "up" until the session ended.
    #[test]
    fn a_session_that_cannot_be_renewed_is_told_though_data_still_comes() {
        let mut log = HandshakeLog::default();
        for _ in 0..UNANSWERED_REKEYS_BEFORE_TROUBLE {
            assert_eq!(log.trouble(), None);
            log.initiation_sent(Instant::now());
            log.heard();
        }
        assert_eq!(log.trouble(), Some(Trouble::RekeyUnanswered { initiations: 4 }));
        assert!(!log.is_unanswered(), "the peer is there");
        log.session_confirmed();
        assert_eq!(log.trouble(), None);
    }

    #[test]
    fn silence_is_told_sooner_than_a_rekey_that_is_not_answered() {
        let mut log = HandshakeLog::default();
        log.initiation_sent(Instant::now());
        log.initiation_sent(Instant::now());
        assert_eq!(log.trouble(), Some(Trouble::NoAnswer { initiations: 2 }));
    }
}
