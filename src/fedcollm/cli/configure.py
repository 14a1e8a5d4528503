"""The commands `fedcollm presets` and `fedcollm init`: list the presets, and print one to start from."""

from fedcollm.cli.options import Source


def presets() -> None:
    """List the configurations that ship with fedcollm."""
    from fedcollm.config.loading import preset_description, preset_names

    for name in preset_names():
        print(f"{name:16} {preset_description(name)}")


def init(source: Source = "icd10") -> None:
    """Print a preset as a complete configuration with comments: `fedcollm init icd10 > my.yaml`."""
    from fedcollm.config.loading import commented_yaml, load_config

    print(commented_yaml(load_config(source)), end="")
