"""The v1 engine: DWCP as its first implementation published it, in its three generations.

v1 has no authentication, no integrity check, no version byte and no acknowledgement. Everything here
bounds what a peer can claim, and says what cannot be known.
"""

from dwcp_fast.v1.chunks import deal_amst, deal_mstcp, read_amst, read_amst_sequence, read_mstcp
from dwcp_fast.v1.connections import V1Stop
from dwcp_fast.v1.delta import decode_delta, encode_delta
from dwcp_fast.v1.hde import BaselineStore, HdeDecoder, HdeEncoder, HdePacket, guess_generation
from dwcp_fast.v1.options import V1Options
from dwcp_fast.v1.receiver import V1Delivery, V1Receiver
from dwcp_fast.v1.sender import V1SendReport, send_v1
from dwcp_fast.v1.v3hde import V3Packet, decode_v3, encode_v3

__all__ = [
    "BaselineStore",
    "HdeDecoder",
    "HdeEncoder",
    "HdePacket",
    "V1Delivery",
    "V1Options",
    "V1Receiver",
    "V1SendReport",
    "V1Stop",
    "V3Packet",
    "deal_amst",
    "deal_mstcp",
    "decode_delta",
    "decode_v3",
    "encode_delta",
    "encode_v3",
    "guess_generation",
    "read_amst",
    "read_amst_sequence",
    "read_mstcp",
    "send_v1",
]
