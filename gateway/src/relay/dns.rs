//! What a sensor's DNS query is answered with: catalogue names with this gateway's own addresses, so that a sensor
//! whose name server is this gateway reaches the `sni` listener. The rest is refused, or left to be forwarded.
//!
//! Of a listed name only A and AAAA hold anything. All other types are answered as empty, HTTPS and SVCB above all: their
//! address hints would lead the sensor past this gateway. What asks for much or tells of others is refused whatever the
//! settings: ANY (RFC 8482), zone transfers, and reverse names.
//!
//! Deliberately not here: sockets, time limits and who may ask (dns_server.rs), zones, caching, DNSSEC. An empty answer
//! carries no SOA, so nobody keeps it (RFC 2308 §5). EDNS options are not answered, and go no further than this hop.
//!
//! Source: RFC 1035 §4.1, RFC 6891 (EDNS), RFC 2308 §2.2 (no data), RFC 5452 §9 (whether an answer is one).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};

use super::host::HostName;

/// What sensors are answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// This gateway's own addresses, where its `sni` listener is.
    pub answers: Vec<IpAddr>,
    /// How long a sensor may keep an answer; whole seconds.
    pub ttl: Duration,
    /// Name servers for what is not listed, in order; none: it is refused.
    pub forward: Vec<SocketAddr>,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self { answers: Vec::new(), ttl: Duration::from_secs(60), forward: Vec::new() }
    }
}

/// What is done with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsReply {
    /// The whole message to send, without the length that goes before it over TCP.
    Answer(Vec<u8>),
    /// One of `DnsSettings::forward` knows.
    Forward,
    /// Nothing is said, for this reason.
    Ignore(&'static str),
}

/// Decides on one message. `query` is the whole of it; over UDP the answer fits what the sensor can take, or is marked as cut.
///
/// Never `Forward` without `settings.forward`. A message that is an answer itself is ignored: two servers would talk for ever.
pub fn reply(query: &[u8], is_listed: &dyn Fn(&HostName) -> bool, settings: &DnsSettings, over_udp: bool) -> DnsReply {
    let Some(header) = header(query) else { return DnsReply::Ignore("too_short") };
    if header.message_type == MessageType::Response {
        return DnsReply::Ignore("not_a_query");
    }
    if header.op_code != OpCode::Query {
        return encode(&blank(&header.metadata, ResponseCode::NotImp, settings), SMALLEST_LIMIT_BYTES);
    }
    let Some((asked, question)) = parse(query) else {
        return encode(&blank(&header.metadata, ResponseCode::FormErr, settings), SMALLEST_LIMIT_BYTES);
    };
    let limit = if over_udp { usize::from(asked.max_payload()).min(PAYLOAD_BYTES) } else { usize::from(u16::MAX) };
    let fail = |code: ResponseCode| encode(&answer_to(&asked, &question, code, settings), limit);
    if asked.version() != 0 {
        return fail(ResponseCode::BADVERS);
    }
    if question.query_class != DNSClass::IN {
        return fail(ResponseCode::NotImp);
    }
    if is_meta(question.query_type) || is_reverse(&question.name) {
        return fail(ResponseCode::Refused);
    }
    let listed = host(&question.name).is_some_and(|host| is_listed(&host));
    if !listed {
        return if settings.forward.is_empty() { fail(ResponseCode::Refused) } else { DnsReply::Forward };
    }
    let mut answer = answer_to(&asked, &question, ResponseCode::NoError, settings);
    answer.metadata.authoritative = true;
    let ttl = u32::try_from(settings.ttl.as_secs()).unwrap_or(LONGEST_TTL_S).min(LONGEST_TTL_S);
    let addresses = settings.answers.iter().filter(|address| is_of_type(address, question.query_type));
    answer.add_answers(addresses.map(|address| Record::from_rdata(question.name.clone(), ttl, RData::from(*address))));
    encode(&answer, limit)
}

/// What a query that should have been forwarded is answered with when no name server has spoken.
pub(super) fn server_failure(query: &[u8], settings: &DnsSettings) -> Option<Vec<u8>> {
    let (asked, question) = parse(query)?;
    answer_to(&asked, &question, ResponseCode::ServFail, settings).to_vec().ok()
}

/// The query as it goes on to a name server: the same question and flags, an id of its own, EDNS of this hop.
pub(super) fn onward(query: &[u8]) -> Option<Vec<u8>> {
    let (asked, question) = parse(query)?;
    // It begins with an id drawn at random.
    let mut onward = Message::query();
    onward.metadata.recursion_desired = asked.metadata.recursion_desired;
    onward.metadata.checking_disabled = asked.metadata.checking_disabled;
    onward.metadata.authentic_data = asked.metadata.authentic_data;
    onward.add_query(question);
    onward.edns = asked.edns.as_ref().map(|edns| {
        let mut own = our_edns(edns);
        // A server must not say more than the sensor can take.
        own.set_max_payload(edns.max_payload().min(PAYLOAD));
        own
    });
    onward.to_vec().ok()
}

/// Whether `answer` is one to `query`: same id, same question, letter case aside (RFC 5452 §9.1).
pub(super) fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(answered)) = (header(query), header(answer)) else { return false };
    let (Some((name, kind)), Some((same_name, same_kind))) = (question(query), question(answer)) else { return false };
    answered.message_type == MessageType::Response
        && answered.op_code == OpCode::Query
        && answered.id == asked.id
        && answered.counts.queries == 1
        && name.eq_ignore_ascii_case(same_name)
        && kind == same_kind
}

/// Makes a name server's answer one to the sensor's `query`: its id, and its question as it was asked.
pub(super) fn restore(answer: &mut [u8], query: &[u8]) {
    let Some((name, _)) = question(query) else { return };
    if let (Some(id), Some(own)) = (answer.get_mut(..ID_BYTES), query.get(..ID_BYTES)) {
        id.copy_from_slice(own);
    }
    if let Some(repeated) = answer.get_mut(HEADER_BYTES..HEADER_BYTES + name.len()) {
        repeated.copy_from_slice(name);
    }
}

/// Whether a name server cut its answer: the whole of it is to be had by TCP.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    header(answer).is_some_and(|header| header.truncation)
}

/// Whether a name server says that it cannot or will not say; another may.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    header(answer)
        .is_some_and(|header| matches!(header.response_code, ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused))
}

/// What an answer that [`reply`] made amounts to, in a word for logs and metrics.
pub(super) fn outcome(answer: &[u8]) -> &'static str {
    let Some(header) = header(answer) else { return "too_short" };
    if header.truncation {
        return "truncated";
    }
    match header.response_code.low() {
        1 => "format_error",
        4 => "not_implemented",
        5 => "refused",
        // What is listed is answered with authority. The rest of the code stands in the EDNS record.
        _ if !header.authoritative => "bad_edns_version",
        _ if header.counts.answers == 0 => "no_data",
        _ => "answered",
    }
}

fn header(message: &[u8]) -> Option<Header> {
    Header::read(&mut BinDecoder::new(message)).ok()
}

/// The query and its question; None unless it has one question and nothing that only an answer has.
fn parse(query: &[u8]) -> Option<(Message, Query)> {
    // Counted first: the parser makes room for as many questions as the header says.
    let counts = header(query)?.counts;
    if (counts.queries, counts.answers, counts.authorities) != (1, 0, 0) {
        return None;
    }
    question(query)?;
    let mut message = Message::from_vec(query).ok()?;
    let question = message.queries.pop()?;
    Some((message, question))
}

/// The name, and the type and class, of a message's first question, as they stand on the wire.
///
/// None if the name is compressed: nothing stands before it that it could point to.
fn question(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut end = HEADER_BYTES;
    loop {
        let length = usize::from(*message.get(end)?);
        if length > MAX_LABEL_BYTES {
            return None;
        }
        end += 1 + length;
        if length == 0 {
            break;
        }
    }
    Some((message.get(HEADER_BYTES..end)?, message.get(end..end + TYPE_AND_CLASS_BYTES)?))
}

/// The name that is asked for, if it could stand in a catalogue. A dot inside a label parts nothing.
fn host(name: &Name) -> Option<HostName> {
    let label = |bytes| str::from_utf8(bytes).ok().filter(|label| !label.contains('.'));
    let labels = name.iter().map(label).collect::<Option<Vec<&str>>>()?;
    HostName::parse(&labels.join(".")).ok()
}

/// Whether a name stands for an address (RFC 1035 §3.5, RFC 3596 §2.5).
fn is_reverse(name: &Name) -> bool {
    let mut labels = name.iter().rev();
    let is_one_of = |label: Option<&[u8]>, words: &[&str]| {
        label.is_some_and(|label| words.iter().any(|word| label.eq_ignore_ascii_case(word.as_bytes())))
    };
    is_one_of(labels.next(), &["arpa"]) && is_one_of(labels.next(), &["in-addr", "ip6"])
}

/// Whether a type is none that a record of a name can have: ANY, transfers, OPT, TSIG and their like (RFC 6895 §3.1).
fn is_meta(record_type: RecordType) -> bool {
    matches!(u16::from(record_type), 0 | 41 | 128..=255)
}

fn is_of_type(address: &IpAddr, record_type: RecordType) -> bool {
    record_type == if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}

/// An answer without question, for what could not be read.
fn blank(asked: &Metadata, code: ResponseCode, settings: &DnsSettings) -> Message {
    let mut answer = Message::response(asked.id, asked.op_code);
    answer.metadata.recursion_desired = asked.recursion_desired;
    answer.metadata.checking_disabled = asked.checking_disabled;
    answer.metadata.recursion_available = !settings.forward.is_empty();
    answer.metadata.response_code = code;
    answer
}

/// An answer without records yet: the question as it was asked, letter case kept, and EDNS if the query has it.
fn answer_to(asked: &Message, question: &Query, code: ResponseCode, settings: &DnsSettings) -> Message {
    let mut answer = blank(&asked.metadata, code, settings);
    answer.add_query(question.clone());
    answer.edns = asked.edns.as_ref().map(our_edns);
    answer
}

/// EDNS for the other side of a query that has it: our size, the other's DNSSEC flag (RFC 3225 §3), no options.
fn our_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

fn encode(answer: &Message, limit: usize) -> DnsReply {
    let mut encoded = answer.to_vec();
    if encoded.as_ref().is_ok_and(|whole| whole.len() > limit) {
        encoded = answer.truncate().to_vec();
    }
    encoded.map_or(DnsReply::Ignore("not_encodable"), DnsReply::Answer)
}

/// Bytes of a message that pass every network in one datagram, our side's limit in EDNS (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// The same, for lengths. No query that makes sense is longer, by UDP or TCP.
pub(super) const PAYLOAD_BYTES: usize = PAYLOAD as usize;

/// What every sensor can take over UDP (RFC 1035 §4.2.1).
const SMALLEST_LIMIT_BYTES: usize = 512;

/// RFC 2181 §8.
const LONGEST_TTL_S: u32 = 0x7fff_ffff;

const HEADER_BYTES: usize = 12;
const ID_BYTES: usize = 2;
const TYPE_AND_CLASS_BYTES: usize = 4;

/// A larger length is a pointer (RFC 1035 §4.1.4).
const MAX_LABEL_BYTES: usize = 63;

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::opt::EdnsOption;
    use proptest::prelude::*;

    use super::*;

    const LISTED: &str = "Contoso-HUB.azure-devices.net.";
    const OTHER: &str = "www.example.com.";

    fn is_listed(host: &HostName) -> bool {
        host.as_str() == "contoso-hub.azure-devices.net"
    }

    fn settings() -> DnsSettings {
        let answers = ["10.0.0.5", "10.0.0.6", "fd00::5"].map(|address| address.parse::<IpAddr>().expect("an address"));
        DnsSettings { answers: answers.into(), ..DnsSettings::default() }
    }

    fn forwarding() -> DnsSettings {
        DnsSettings { forward: vec!["192.0.2.53:53".parse().expect("an address")], ..settings() }
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn asking(text: &str, record_type: RecordType) -> Message {
        let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name(text), record_type));
        query
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("encoded")
    }

    fn answered(query: &[u8], settings: &DnsSettings, over_udp: bool) -> (Vec<u8>, Message) {
        let DnsReply::Answer(answer) = reply(query, &is_listed, settings, over_udp) else { panic!("not answered") };
        let message = Message::from_vec(&answer).expect("a message");
        (answer, message)
    }

    fn code(query: &Message, settings: &DnsSettings) -> ResponseCode {
        answered(&bytes(query), settings, true).1.metadata.response_code
    }

    fn addresses(answer: &Message) -> Vec<String> {
        answer.answers.iter().filter_map(|record| record.data.ip_addr()).map(|address| address.to_string()).collect()
    }

    #[test]
    fn answers_a_listed_name_with_our_addresses_of_the_family() {
        for (record_type, expected) in [(RecordType::A, vec!["10.0.0.5", "10.0.0.6"]), (RecordType::AAAA, vec!["fd00::5"])] {
            let query = bytes(&asking(LISTED, record_type));
            let (raw, answer) = answered(&query, &settings(), true);
            assert_eq!(addresses(&answer), expected);
            assert!(answer.answers.iter().all(|record| record.ttl == 60 && record.name == name(LISTED)));
            assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x1234, ResponseCode::NoError));
            assert!(answer.metadata.authoritative && answer.metadata.recursion_desired && !answer.metadata.recursion_available);
            assert!(answer.edns.is_none(), "who does not speak EDNS is not spoken to in it");
            assert_eq!(outcome(&raw), "answered");
            assert!(is_answer(&query, &raw));
        }
    }

    #[test]
    fn repeats_the_question_letter_by_letter() {
        let query = bytes(&asking(LISTED, RecordType::A));
        let (raw, _) = answered(&query, &settings(), true);
        assert!(query.windows(11).any(|part| part == b"Contoso-HUB"));
        assert_eq!(question(&raw), question(&query));
    }

    #[test]
    fn has_nothing_else_of_a_listed_name() {
        let only_ipv4 = DnsSettings { answers: vec!["10.0.0.5".parse().expect("an address")], ..settings() };
        for (record_type, settings) in [
            (RecordType::AAAA, &only_ipv4),
            (RecordType::HTTPS, &settings()),
            (RecordType::SVCB, &settings()),
            (RecordType::TXT, &settings()),
            (RecordType::CNAME, &forwarding()),
            (RecordType::Unknown(4242), &settings()),
        ] {
            let (raw, answer) = answered(&bytes(&asking(LISTED, record_type)), settings, true);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{record_type}");
            assert!(answer.metadata.authoritative && answer.answers.is_empty() && answer.authorities.is_empty(), "{record_type}");
            assert_eq!(outcome(&raw), "no_data");
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_or_forwarded() {
        for text in [OTHER, ".", "azure-devices.net.", "x.contoso-hub.azure-devices.net.", "10.0.0.1."] {
            let query = asking(text, RecordType::A);
            let (raw, answer) = answered(&bytes(&query), &settings(), true);
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{text}");
            assert!(!answer.metadata.authoritative);
            assert_eq!(outcome(&raw), "refused");
            assert_eq!(reply(&bytes(&query), &is_listed, &forwarding(), true), DnsReply::Forward, "{text}");
        }
        let (_, listed) = answered(&bytes(&asking(LISTED, RecordType::A)), &forwarding(), true);
        assert!(listed.metadata.recursion_available, "who forwards says so in every answer");
    }

    #[test]
    fn a_dot_inside_a_label_parts_nothing() {
        let labels: [&[u8]; 2] = [b"contoso-hub.azure-devices", b"net"];
        let mut query = asking(OTHER, RecordType::A);
        query.queries = vec![Query::query(Name::from_labels(labels).expect("a name"), RecordType::A)];
        assert_eq!(code(&query, &settings()), ResponseCode::Refused);
    }

    #[test]
    fn refuses_what_asks_for_much_even_if_it_could_be_forwarded() {
        for (text, record_type) in [
            (LISTED, RecordType::ANY),
            (OTHER, RecordType::ANY),
            (OTHER, RecordType::AXFR),
            (OTHER, RecordType::IXFR),
            (OTHER, RecordType::OPT),
            (OTHER, RecordType::TSIG),
            ("5.0.0.10.in-addr.arpa.", RecordType::PTR),
            ("2.0.192.IN-ADDR.ARPA.", RecordType::NS),
            ("8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::PTR),
        ] {
            assert_eq!(code(&asking(text, record_type), &forwarding()), ResponseCode::Refused, "{text} {record_type}");
        }
        assert_eq!(reply(&bytes(&asking("arpa.example.", RecordType::PTR)), &is_listed, &forwarding(), true), DnsReply::Forward);
    }

    #[test]
    fn says_what_is_wrong_with_a_query() {
        let mut two = asking(LISTED, RecordType::A);
        two.add_query(Query::query(name(OTHER), RecordType::A));
        assert_eq!(code(&two, &settings()), ResponseCode::FormErr);

        let mut none = asking(LISTED, RecordType::A);
        none.queries.clear();
        assert_eq!(code(&none, &settings()), ResponseCode::FormErr);

        let mut with_answer = asking(LISTED, RecordType::A);
        with_answer.add_answer(Record::from_rdata(name(LISTED), 60, RData::from(IpAddr::from([10, 0, 0, 9]))));
        assert_eq!(code(&with_answer, &settings()), ResponseCode::FormErr);

        let mut chaos = asking("version.bind.", RecordType::TXT);
        for query in &mut chaos.queries {
            query.set_query_class(DNSClass::CH);
        }
        assert_eq!(code(&chaos, &forwarding()), ResponseCode::NotImp);

        let notify = Message::new(7, MessageType::Query, OpCode::Notify);
        assert_eq!(code(&notify, &settings()), ResponseCode::NotImp);
    }

    #[test]
    fn a_query_that_ends_early_or_points_about_is_malformed() {
        let whole = bytes(&asking(LISTED, RecordType::A));
        for length in HEADER_BYTES..whole.len() {
            let (raw, answer) = answered(&whole[..length], &settings(), true);
            assert_eq!((answer.metadata.response_code, answer.metadata.id), (ResponseCode::FormErr, 0x1234), "{length} bytes");
            assert_eq!(outcome(&raw), "format_error");
        }
        let mut pointing = whole[..HEADER_BYTES].to_vec();
        pointing.extend([0xc0, 0, 0, 1, 0, 1]);
        assert_eq!(answered(&pointing, &settings(), true).1.metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn many_questions_are_counted_before_room_is_made_for_them() {
        let mut query = bytes(&asking(LISTED, RecordType::A));
        query[4..6].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(answered(&query, &settings(), true).1.metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn says_nothing_to_an_answer_or_to_a_fragment() {
        let answer = bytes(&asking(LISTED, RecordType::A).into_response());
        assert_eq!(reply(&answer, &is_listed, &forwarding(), true), DnsReply::Ignore("not_a_query"));
        assert_eq!(reply(&answer[..11], &is_listed, &settings(), true), DnsReply::Ignore("too_short"));
        assert_eq!(reply(&[], &is_listed, &settings(), false), DnsReply::Ignore("too_short"));
    }

    #[test]
    fn speaks_edns_to_who_speaks_it() {
        let mut query = asking(LISTED, RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; 8]));
        query.set_edns(edns.clone());
        let (_, answer) = answered(&bytes(&query), &settings(), true);
        let own = answer.edns.expect("EDNS");
        assert_eq!((own.max_payload(), own.version(), own.flags().dnssec_ok), (1232, 0, true));
        assert!(own.options().as_ref().is_empty(), "a cookie is for who gave it");

        edns.set_version(1);
        query.set_edns(edns);
        let (raw, answer) = answered(&bytes(&query), &settings(), true);
        assert_eq!(u16::from(answer.metadata.response_code), 16);
        assert_eq!(answer.edns.expect("EDNS").version(), 0);
        assert_eq!(outcome(&raw), "bad_edns_version");
    }

    #[test]
    fn cuts_what_does_not_fit_in_a_datagram_and_says_so() {
        let many = DnsSettings { answers: (0..60).map(|last| IpAddr::from([10, 0, 0, last])).collect(), ..settings() };
        let mut query = asking(LISTED, RecordType::A);
        let (raw, cut) = answered(&bytes(&query), &many, true);
        assert!(cut.metadata.truncation && cut.answers.is_empty() && raw.len() <= 512);
        assert_eq!(outcome(&raw), "truncated");
        assert_eq!(addresses(&answered(&bytes(&query), &many, false).1).len(), 60);

        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        query.set_edns(edns);
        assert_eq!(addresses(&answered(&bytes(&query), &many, true).1).len(), 60, "60 fit into 1232 bytes");
    }

    #[test]
    fn goes_on_with_the_same_question_and_nothing_else_of_the_sensor() {
        let mut query = asking(LISTED, RecordType::HTTPS);
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; 8]));
        query.set_edns(edns);
        let query = bytes(&query);
        let raw = onward(&query).expect("a query");
        assert_eq!(question(&raw), question(&query));
        let onward = Message::from_vec(&raw).expect("a query");
        assert!(onward.metadata.message_type == MessageType::Query && onward.metadata.recursion_desired);
        let own = onward.edns.expect("EDNS");
        assert_eq!((own.max_payload(), own.flags().dnssec_ok), (1232, true));
        assert!(own.options().as_ref().is_empty());

        let plain = super::onward(&bytes(&asking(OTHER, RecordType::A))).expect("a query");
        assert!(Message::from_vec(&plain).expect("a query").edns.is_none());
    }

    #[test]
    fn an_answer_has_the_id_and_the_question_that_were_asked() {
        let query = bytes(&asking(LISTED, RecordType::HTTPS));
        let answer = |change: &dyn Fn(&mut Message)| {
            let mut answer = asking(LISTED, RecordType::HTTPS).into_response();
            change(&mut answer);
            bytes(&answer)
        };
        let other_question = |text: &str, record_type| answer(&|answer| answer.queries = vec![Query::query(name(text), record_type)]);
        assert!(is_answer(&query, &answer(&|_| {})));
        assert!(is_answer(&query, &other_question("contoso-hub.AZURE-devices.net.", RecordType::HTTPS)));
        assert!(!is_answer(&query, &query), "a query is no answer");
        assert!(!is_answer(&query, &answer(&|answer| answer.metadata.id = 0x1235)));
        assert!(!is_answer(&query, &answer(&|answer| answer.queries.clear())));
        assert!(!is_answer(&query, &other_question(OTHER, RecordType::HTTPS)));
        // 65 and 97 are one letter in two cases, and two types.
        assert!(!is_answer(&query, &other_question(LISTED, RecordType::Unknown(97))));
        assert!(!is_answer(&query, &[]));
    }

    #[test]
    fn an_answer_is_given_back_as_it_was_asked_for() {
        let query = bytes(&asking(LISTED, RecordType::A));
        let mut answer = asking("contoso-hub.azure-devices.net.", RecordType::A).into_response();
        answer.metadata.id = 9;
        answer.add_answer(Record::from_rdata(name(LISTED), 5, RData::from(IpAddr::from([192, 0, 2, 1]))));
        let mut raw = bytes(&answer);
        restore(&mut raw, &query);
        assert_eq!(question(&raw), question(&query));
        let restored = Message::from_vec(&raw).expect("a message");
        assert_eq!(restored.metadata.id, 0x1234);
        assert_eq!(addresses(&restored), ["192.0.2.1"]);
    }

    #[test]
    fn a_server_failure_answers_the_query() {
        let query = bytes(&asking(OTHER, RecordType::A));
        let failure = server_failure(&query, &forwarding()).expect("an answer");
        assert!(is_answer(&query, &failure) && is_failure(&failure));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_ignored(message in proptest::collection::vec(any::<u8>(), 0..600), over_udp in any::<bool>()) {
            holds(&message, over_udp)?;
        }

        #[test]
        fn a_damaged_query_is_answered_or_ignored(
            damage in proptest::collection::vec((0usize..80, any::<u8>()), 1..4),
            over_udp in any::<bool>(),
        ) {
            let mut query = asking(LISTED, RecordType::A);
            let mut edns = Edns::new();
            edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; 8]));
            query.set_edns(edns);
            let mut query = bytes(&query);
            for (at, byte) in damage {
                if let Some(place) = query.get_mut(at) {
                    *place = byte;
                }
            }
            holds(&query, over_udp)?;
        }
    }

    fn holds(message: &[u8], over_udp: bool) -> Result<(), TestCaseError> {
        match reply(message, &is_listed, &forwarding(), over_udp) {
            DnsReply::Answer(answer) => {
                prop_assert!(message.len() >= HEADER_BYTES && message[2] & 0x80 == 0);
                prop_assert_eq!(&answer[..ID_BYTES], &message[..ID_BYTES]);
                prop_assert!(answer[2] & 0x80 != 0 && (!over_udp || answer.len() <= PAYLOAD_BYTES));
            }
            DnsReply::Forward => {
                let onward = onward(message);
                prop_assert!(onward.is_some_and(|onward| question(&onward) == question(message)));
            }
            DnsReply::Ignore(why) => prop_assert!(["too_short", "not_a_query", "not_encodable"].contains(&why)),
        }
        Ok(())
    }
}
