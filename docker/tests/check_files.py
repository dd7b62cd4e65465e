"""What linters of single files do not see: run by make lint.

Compose files are valid once their variables are filled in, and agree with the Dockerfile and
the example of an environment; the script in the CloudFormation template is one for bash.
"""

import pathlib
import re
import subprocess
import sys

import compose_spec
import yaml

DOCKER = pathlib.Path(__file__).resolve().parent.parent
USER_DATA = "        Fn::Base64: !Sub |\n"


def interpolate(text, values):
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?message}, for the given values."""

    def value(match):
        name, kind, rest = match.group(1), match.group(2), match.group(3)
        if name in values:
            return values[name]
        if kind == ":-":
            return rest
        raise ValueError(f"{name} has no value")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def compose(name):
    """A compose file as a dictionary, once it has been found valid."""
    text = interpolate((DOCKER / name).read_text(), {"POSTGRES_PASSWORD": "x"})
    compose_spec.PyCompose.from_yaml(text)
    return yaml.safe_load(text)


def check_compose():
    base, cuda = compose("compose.yaml"), compose("compose.cuda.yaml")
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.M)
    for file in base, cuda:
        for service in file["services"].values():
            target = service.get("build", {}).get("target")
            assert target is None or target in stages, f"the Dockerfile has no stage {target}"
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:"), f"port {port} is open to all"
            for volume in service.get("volumes", []):
                name = volume.split(":")[0]
                assert name.startswith(".") or name in base["volumes"], f"no volume {name}"
    assert set(cuda["services"]) == set(base["services"]), "the override forgets a service"


def check_example():
    """Its variables are settings that the entry point knows."""
    entry_point = (DOCKER / "bin/pg_sight-entrypoint").read_text()
    known = {"POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_PORT", "HF_TOKEN"}
    for prefix, names in re.findall(r"^(PG_SIGHT|FAISS_IVF|OTHERS)=\(([^)]*)\)", entry_point, re.M):
        prefix = "" if prefix == "OTHERS" else prefix + "_"
        known.update((prefix + name).upper() for name in names.split())
    example = (DOCKER / "env.example").read_text()
    found = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.M))
    assert len(found) > 5, "the example of an environment is not what it was"
    assert found <= known, f"unknown variables in env.example: {found - known}"


def check_user_data():
    template = (DOCKER / "aws/template.yaml").read_text()
    lines = template.split(USER_DATA)[1].splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith(" " * 10))
    script = "\n".join(line[10:] for line in lines[:end]) + "\n"
    # As CloudFormation does: names become values, ${!x} becomes ${x}.
    script = re.sub(r"\$\{(?!!)[\w:]+\}", "value", script).replace("${!", "${")
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "-"], input=script.encode(), check=True)


if __name__ == "__main__":
    check_compose()
    check_example()
    check_user_data()
    print("compose files, env.example and user data are sound")
