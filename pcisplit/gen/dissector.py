# SPDX-License-Identifier: MIT
"""``spec/pcisplit.gen.lua``: a Wireshark dissector of slots and messages, from the records and numbers of ``wire/``."""

import enum
import json
from collections.abc import Iterator

from pcisplit import wire
from pcisplit.gen.c_header import NOTE
from pcisplit.proto.words import numbers_of
from pcisplit.wire import OPERATIONS, Field, Record

#: Values of the first octet of a captured packet, for what has no magic.
LINK_KINDS = {"message": 0, "request": 1, "response": 2, "event": 3}
LINK_TYPE = 147  #: USER0
LINK_HEAD = 4  #: octets of a captured packet before the slot or message

_MAGICS = {
    "hello": wire.HELLO_MAGIC,
    "reply": wire.REPLY_MAGIC,
    "late": wire.LATE_MAGIC,
    "boot_info": wire.BOOT_MAGIC,
    "front_header": wire.F2B_MAGIC,
    "back_header": wire.B2F_MAGIC,
}
_TYPES = {"B": "UINT8", "H": "UINT16", "h": "INT16", "I": "UINT32", "i": "INT32", "Q": "UINT64"}


def text() -> str:
    return "\n".join([*_top(), *_numbers(), *_records(), *_kinds(), _DISSECTOR])


def _top() -> Iterator[str]:
    yield from ("-- SPDX-License-Identifier: MIT", f"-- {NOTE}", "--")
    yield "-- Wireshark: wireshark -X lua_script:pcisplit.gen.lua trace.pcap"
    yield f"-- A trace has link type USER0 ({LINK_TYPE}). Each packet: {LINK_HEAD} octets, the first of them"
    kinds = ", ".join(f"{value} for a {name}" for name, value in LINK_KINDS.items())
    yield f"-- {kinds}, the others zero; then the slot or message."
    yield ""


def _numbers() -> Iterator[str]:
    used = {numbers_of(record, field) for record in wire.RECORDS.values() for field in record.fields}
    yield from ("-- Names of numbers; of flags the bits.", "local numbers = {")
    for members in sorted((each for each in used if each), key=lambda each: each.__name__):
        names = ", ".join(f"[{int(each.value)}] = {_name(each)}" for each in members)
        yield f"    {members.__name__} = {{ {names} }},"
    yield "}"


def _name(member: enum.Enum) -> str:
    return _quoted(member.name.lower())


def _quoted(said: str) -> str:
    return json.dumps(said)  # of printable ASCII, the same in Lua


def _records() -> Iterator[str]:
    yield from (
        "",
        "-- {name, type, offset, octets of one, how many, meaning, names of its numbers, whether these are bits}",
    )
    yield "local records = {"
    for record in wire.RECORDS.values():
        yield f"    {record.name} = {{ size = {record.size},"
        yield from (f"        {_field(record, field, at)}," for field, at in record.places)
        yield "    },"
    yield "}"


def _field(record: Record, field: Field, at: int) -> str:
    kind = {"octets": "STRING", "zero": "zero", "pad": "zero"}.get(field.role) or _TYPES[field.code]
    one, many = (field.size, 1) if field.role else (field.size // (field.count or 1), field.count or 1)
    numbers = numbers_of(record, field)
    names, flags = (f", {_quoted(numbers.__name__)}", issubclass(numbers, enum.IntFlag)) if numbers else ("", False)
    place = f"{at}, {one}, {many}"
    return f"{{ {_quoted(field.name)}, {_quoted(kind)}, {place}, {_quoted(field.text)}{names}{', true' if flags else ''} }}"


def _kinds() -> Iterator[str]:
    yield from ("", "-- Which record: by magic, by operation where it is not the plain one, by the kind of a record.")
    yield "local by_magic = {"
    yield from (f"    [{magic:#x}] = {_quoted(name)}," for name, magic in _MAGICS.items())
    yield "}"
    for name, plain in (("request", wire.REQUEST), ("response", wire.RESPONSE)):
        rows = {op: getattr(row, name).name for op, row in OPERATIONS.items() if getattr(row, name) is not plain}
        listed = ", ".join(f"[{int(op)}] = {_quoted(record)}" for op, record in rows.items())
        yield f"local {name}_of = {{ {listed} }}"
    for name, records in (("boot", wire.BOOT_RECORDS), ("hello", wire.HELLO_RECORDS)):
        listed = ", ".join(f"[{int(kind)}] = {_quoted(record.name)}" for kind, record in records.items())
        yield f"local {name}_record = {{ {listed} }}"
    listed = ", ".join(f"[{value}] = {_quoted(name)}" for name, value in LINK_KINDS.items())
    yield from (f"local link_kind = {{ {listed} }}", f"local LINK_HEAD = {LINK_HEAD}", "")


_DISSECTOR = """\
local pcisplit = Proto("pcisplit", "pcisplit, a PCI split driver")
local reserved = ProtoExpert.new("pcisplit.reserved", "must be zero [REG-4]", expert.group.PROTOCOL, expert.severity.WARN)
local cut = ProtoExpert.new("pcisplit.cut", "cut off, or no length that fits", expert.group.MALFORMED, expert.severity.ERROR)
pcisplit.experts = { reserved, cut }

local fields, all = {}, {}
for name, record in pairs(records) do
    for _, f in ipairs(record) do
        local abbr, names = "pcisplit." .. name .. "." .. f[1], nil
        if f[2] == "zero" then
            fields[abbr] = ProtoField.bytes(abbr, f[1], base.SPACE, f[6])
        elseif f[2] == "STRING" then
            fields[abbr] = ProtoField.stringz(abbr, f[1], base.ASCII, f[6])
        else
            if f[7] and not f[8] and f[2] ~= "UINT64" then names = numbers[f[7]] end
            local signed = f[2] == "INT16" or f[2] == "INT32"
            fields[abbr] = ProtoField.new(f[1], abbr, ftypes[f[2]], names, signed and base.DEC or base.HEX_DEC, nil, f[6])
        end
        all[#all + 1] = fields[abbr]
    end
end
pcisplit.fields = all

local function bits(names, value)
    local set = {}
    for bit, name in pairs(names) do
        if bit > 0 and math.floor(value / bit) % 2 == 1 then set[#set + 1] = { bit, name } end
    end
    table.sort(set, function(a, b) return a[1] < b[1] end)
    for i, each in ipairs(set) do set[i] = each[2] end
    return #set > 0 and table.concat(set, ", ") or "none"
end

-- The record `name` at the start of `tvb`, as far as the octets go.
local function dissect(name, tvb, tree)
    local record = records[name]
    local length = math.min(record.size, tvb:len())
    local part = tree:add(pcisplit, tvb(0, length), name)
    for _, f in ipairs(record) do
        for i = 0, f[5] - 1 do
            local at = f[3] + i * f[4]
            if at + f[4] > tvb:len() then
                part:add_proto_expert_info(cut)
                return part
            end
            local range, field = tvb(at, f[4]), fields["pcisplit." .. name .. "." .. f[1]]
            if f[2] == "zero" then
                if range:bytes():tohex():find("[^0]") then part:add(field, range):add_proto_expert_info(reserved) end
            elseif f[2] == "STRING" then
                part:add(field, range)
            else
                local item = part:add_le(field, range)
                if f[8] then
                    local value = f[4] == 8 and range:le_uint64():tonumber() or range:le_uint()
                    item:append_text(" " .. bits(numbers[f[7]], value))
                end
            end
        end
    end
    return part
end

-- Records that begin with kind and length.
local function dissect_records(kinds, tvb, tree)
    local at, found = 0, 0
    while at + 4 <= tvb:len() do
        local kind, length = tvb(at, 2):le_uint(), tvb(at + 2, 2):le_uint()
        if length < 8 or length % 8 ~= 0 or at + length > tvb:len() then
            tree:add_proto_expert_info(cut)
            return found
        end
        local range = tvb(at, length)
        if kinds[kind] then dissect(kinds[kind], range:tvb(), tree) else tree:add(range, "record of unknown kind " .. kind) end
        at, found = at + length, found + 1
    end
    return found
end

local function dissect_message(tvb, tree)
    local name = tvb:len() >= 4 and by_magic[tvb(0, 4):le_uint()]
    if not name then return "unknown" end
    dissect(name, tvb, tree)
    local size = records[name].size
    if tvb:len() <= size then return name end
    local rest = tvb(size):tvb()
    if name == "hello" then
        dissect_records(hello_record, rest, tree)
    elseif name == "boot_info" or name == "late" then
        dissect_records(boot_record, rest, tree)
    elseif name == "reply" then
        local text = math.min(tvb(16, 4):le_uint(), rest:len())
        if text > 0 then tree:add(rest(0, text), "text: " .. rest(0, text):string()) end
        if rest:len() > text then dissect_message(rest(text):tvb(), tree) end
    end
    return name
end

local function dissect_slot(kind, tvb, tree)
    if tvb:len() < 2 then
        tree:add_proto_expert_info(cut)
        return kind
    end
    local number = tvb(0, 2):le_uint()
    if kind == "event" then
        dissect("event", tvb, tree)
        return "event " .. (numbers.EventKind[number] or number)
    end
    local of = kind == "request" and request_of or response_of
    dissect(of[number] or kind, tvb, tree)
    local said = kind .. " " .. (numbers.Op[number] or number)
    if kind == "response" and tvb:len() >= 4 and tvb(2, 2):le_int() ~= 0 then
        said = said .. ": " .. (numbers.Error[tvb(2, 2):le_int()] or tvb(2, 2):le_int())
    end
    return said
end

function pcisplit.dissector(tvb, pinfo, tree)
    pinfo.cols.protocol = "pcisplit"
    if tvb:len() <= LINK_HEAD then return end
    local kind, inner = link_kind[tvb(0, 1):uint()], tvb(LINK_HEAD):tvb()
    local said
    if kind == "message" then said = dissect_message(inner, tree) elseif kind then said = dissect_slot(kind, inner, tree) end
    pinfo.cols.info = said or "unknown"
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, pcisplit)
"""
