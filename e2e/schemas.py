#!/usr/bin/env python3
"""JSON Schemas of the records: ECS and OCSF, made from their publishers' packages and reduced to the fields that the
project uses, so that a field which does not exist, or has another type, fails the tests.

    e2e/schemas.py           writes sensor/tests/schema/ecs.json and ocsf.json
    e2e/schemas.py --check   exits 1 and names those that are stale

Which fields those are is said in schema_fields.py. Needs npm, node and pip. What the packages say stays in
$PATHWATCH_CACHE; once it is there, no network is needed.
"""
import itertools, json, os, pathlib, re, shutil, subprocess, sys, tarfile, tempfile, zipfile

sys.dont_write_bytecode = True
from schema_fields import ECS_FIELDS, ECS_REQUIRED, ECS_TYPES, OCSF_CLASSES, OCSF_OBJECTS, OCSF_TYPES

ECS, OCSF, OCSF_PACKAGE = "9.4.0", "1.5.0", "1.2.0"
HERE = pathlib.Path(__file__).resolve().parent.parent / "sensor/tests/schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
BASE = "https://pathwatch.dev/schema/"
# Maintained by hand: what Pathwatch has beside ECS and OCSF.
OWN = "pathwatch.json"


def braces(word):
    """The words that a word with the shell's braces stands for."""
    inner = re.search(r"\{([^{}]*)\}", word)
    if not inner:
        return [word]
    parts = (word[:inner.start()] + part + word[inner.end():] for part in inner[1].split(","))
    return list(itertools.chain.from_iterable(map(braces, parts)))


def closed(properties, required=()):
    schema = {"type": "object", "additionalProperties": False}
    if required:
        schema["required"] = sorted(required)
    return {**schema, "properties": dict(sorted(properties.items()))}


def ecs_field(field):
    schema = {"$ref": f"#/$defs/{field['type']}"}
    if field["flat_name"] == "ecs.version":
        schema = {"const": ECS}
    if values := field.get("allowed_values"):
        schema = {"enum": [value["name"] for value in values]}
    elif values := field.get("expected_values"):
        schema = {"enum": values}
    elif field.get("ignore_above", 1024) != 1024:
        schema["maxLength"] = field["ignore_above"]
    if "array" in field["normalize"]:
        return {"type": "array", "minItems": 1, "items": schema}
    return schema


def expected_types(categories):
    """One of the record's categories must expect each of its types."""
    types = sorted({kind for category in categories for kind in category["expected_event_types"]})
    for kind in types:
        expecting = [category["name"] for category in categories if kind in category["expected_event_types"]]
        yield {
            "if": {"required": ["type"], "properties": {"type": {"type": "array", "contains": {"const": kind}}}},
            "then": {"required": ["category"], "properties": {"category": {"contains": {"enum": expecting}}}},
        }


def ecs(flat):
    names = list(itertools.chain.from_iterable(map(braces, ECS_FIELDS.split())))
    required = set(ECS_REQUIRED.split()) | {name for name in names if flat[name].get("required")}

    def below(prefix):
        inner = [name[len(prefix):] for name in names if name.startswith(prefix)]
        keys = {name.split(".")[0] for name in inner}
        fields = {key: ecs_field(flat[prefix + key]) if key in inner else below(f"{prefix}{key}.") for key in keys}
        return closed(fields, {name[len(prefix):].split(".")[0] for name in required if name.startswith(prefix)})

    schema = below("")
    schema["properties"]["event"]["allOf"] = list(expected_types(flat["event.category"]["allowed_values"]))
    schema["properties"]["pathwatch"] = {"$ref": OWN}
    schema["properties"]["kubernetes"] = {"$ref": f"{OWN}#/$defs/kubernetes"}
    return {"title": f"ECS {ECS}, as far as Pathwatch uses it", **schema, "$defs": ECS_TYPES}


def part(source, name):
    """The attributes of a reduced class or object, each with the name of its own reduced object."""
    whole, chosen = name, OCSF_CLASSES.get(name) or OCSF_OBJECTS[name]
    if isinstance(chosen, tuple):
        whole, chosen = chosen
    whole = source["classes" if name in OCSF_CLASSES else "objects"][whole]
    attributes = {}
    for attribute, _, alias in (word.partition(":") for word in chosen.split()):
        attributes[attribute] = found = dict(whole["attributes"][attribute])
        found["part"] = alias or found.get("object_type")
        assert "@deprecated" not in found, f"{name}.{attribute} is deprecated"
    return whole, attributes


def ocsf_attribute(source, name, attribute):
    kind = source["types"].get(attribute["type"], {})
    if name == "unmapped":
        # What OCSF has no attribute for stays in the form that it has in ECS.
        parts = {key: {"$ref": f"ecs.json#/properties/{key}"} for key in ["file", "process", "kubernetes", "pathwatch"]}
        schema = closed(parts)
    elif attribute["type"] == "object_t":
        schema = {"$ref": f"#/$defs/{attribute['part']}"}
    elif "enum" in attribute and attribute["type"] in ("integer_t", "long_t"):
        schema = {"enum": sorted(map(int, attribute["enum"]))}
    elif attribute["type"] in OCSF_TYPES:
        schema = {"$ref": f"#/$defs/{attribute['type']}"}
    else:
        schema = {"type": {"string_t": "string"}[kind["type"]]}
        schema |= {"pattern": kind["regex"]} if "regex" in kind else {}
        schema |= {"maxLength": kind["max_len"]} if "max_len" in kind else {}
    return {"type": "array", "minItems": 1, "items": schema} if attribute.get("is_array") else schema


def ocsf_part(source, name):
    whole, attributes = part(source, name)
    fields = {key: ocsf_attribute(source, key, value) for key, value in attributes.items()}
    # A profile's attributes are not there without the profile.
    plain = {key for key, value in attributes.items() if not value.get("profile")}
    schema = closed(fields, {key for key in plain if attributes[key]["requirement"] == "required"})
    for rule, word in (("at_least_one", "anyOf"), ("just_one", "oneOf")):
        if choices := [key for key in whole.get("constraints", {}).get(rule, []) if key in fields]:
            schema[word] = [{"required": [key]} for key in choices]
    return schema


def profiled(source, name, reached):
    """For each profile, schemas of records of class or object `name` that have one of its attributes."""
    found = {}
    for key, attribute in part(source, name)[1].items():
        def within(schema):
            schema = {"type": "array", "contains": schema} if attribute.get("is_array") else schema
            return {"type": "object", "required": [key], "properties": {key: schema}}
        if attribute.get("profile"):
            found.setdefault(attribute["profile"], []).append({"required": [key]})
        if attribute["type"] == "object_t" and attribute["part"] in OCSF_OBJECTS and attribute["part"] not in reached:
            for profile, schemas in profiled(source, attribute["part"], reached | {name}).items():
                found.setdefault(profile, []).append(within({"type": "object", "anyOf": schemas}))
    return found


def ocsf_class(source, name):
    schema = ocsf_part(source, name)
    activities = schema["properties"]["activity_id"]["enum"]
    number = source["classes"][name]["uid"]
    pairs = [{"activity_id": {"const": n}, "type_uid": {"const": number * 100 + n}} for n in activities]
    schema["allOf"] = [{"anyOf": [{"properties": pair} for pair in pairs]}]
    for profile, schemas in sorted(profiled(source, name, set()).items()):
        listed = {"required": ["profiles"], "properties": {"profiles": {"contains": {"const": profile}}}}
        schema["allOf"].append({"if": {"anyOf": schemas}, "then": {"properties": {"metadata": listed}}})
    return schema


def ocsf(source):
    definitions = {name: ocsf_part(source, name) for name in OCSF_OBJECTS} | OCSF_TYPES
    definitions["metadata"]["properties"]["version"] = {"const": OCSF}
    known = sorted({profile for name in OCSF_CLASSES for profile in source["classes"][name]["profiles"]})
    definitions["metadata"]["properties"]["profiles"]["items"] = {"enum": known}
    numbers = {name: source["classes"][name]["uid"] for name in OCSF_CLASSES}
    schema = {
        "title": f"OCSF {OCSF}, as far as Pathwatch uses it", "type": "object", "required": ["class_uid", "message"],
        "properties": {"class_uid": {"enum": sorted(numbers.values())}},
        "allOf": [{"if": {"properties": {"class_uid": {"const": number}}}, "then": {"$ref": f"#/$defs/{name}"}}
                  for name, number in numbers.items()],
    }
    definitions |= {name: ocsf_class(source, name) for name in OCSF_CLASSES}
    return schema | {"$defs": dict(sorted(definitions.items()))}


def pretty(value, indent="", taken=0):
    """JSON in which whatever fits stands on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + taken + len(line) <= 118 or not isinstance(value, (dict, list)):
        return line
    pairs = [json.dumps(key) + ": " for key in value] if isinstance(value, dict) else [""] * len(value)
    items = value.values() if isinstance(value, dict) else value
    inner = ",\n".join(f"{indent} {key}{pretty(item, indent + ' ', len(key))}" for key, item in zip(pairs, items))
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{inner}\n{indent}{right}"


def sources():
    """What the packages say, fetched once."""
    cache = os.environ.get("PATHWATCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pathwatch")
    kept = pathlib.Path(cache) / f"schemas-{ECS}-{OCSF}-{OCSF_PACKAGE}"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix="schemas-", dir=kept.parent))
        try:
            fetch(work)
            work.rename(kept)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return [json.loads((kept / name).read_text()) for name in ("ecs.json", "ocsf.json")]


def fetch(work):
    run = lambda *command: subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE).stdout
    run("npm", "pack", "--silent", f"@elastic/ecs@{ECS}")
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"ocsf-json-schema=={OCSF_PACKAGE}")
    archive, wheel = next(work.glob("*.tgz")), next(work.glob("*.whl"))
    # Not generated/ecs_flat.js: in this package that is of an older version.
    with tarfile.open(archive) as files, open(work / "ecs_flat.js", "wb") as out:
        shutil.copyfileobj(files.extractfile("package/build/commonjs/ecs_flat.js"), out)
    (work / "ecs.json").write_bytes(run("node", "-p", "JSON.stringify(require('./ecs_flat.js').EcsFlat)"))
    with zipfile.ZipFile(wheel) as files:
        (work / "ocsf.json").write_bytes(files.read(f"ocsf_json_schema/ocsf/{OCSF}.json"))
    for name in (archive, wheel, work / "ecs_flat.js"):
        name.unlink()


def main(check):
    flat, catalogue = sources()
    stale = []
    for name, schema in (("ecs.json", ecs(flat)), ("ocsf.json", ocsf(catalogue))):
        file = HERE / name
        text = pretty({"$schema": DIALECT, "$id": BASE + name, **schema}) + "\n"
        if not file.exists() or file.read_text() != text:
            stale.append(file)
            check or file.write_text(text)
    for file in stale:
        print(f"{file} {'is stale; type: e2e/schemas.py' if check else 'written'}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:] == ["--check"]))
