"""Opens the source that `data:` of a recipe names."""

from pathlib import Path

from t2i.data.data_config import DataConfig
from t2i.data.folder import FolderSource, Naming
from t2i.data.scenes import ScenesSource
from t2i.data.source import Source, Subset
from t2i.errors import ConfigError


def open_source(config: DataConfig, recipe_folder: str | Path | None = None, section: str = "data") -> Source:
    """Returns the source that `config` names; relative paths start in the current folder, then in the recipe's.

    Raises a ConfigError whose key begins with `section`, the recipe's name of `config`.
    """
    try:
        source = _open(config, recipe_folder)
        for key, name, listed in (("exclude", config.exclude, False), ("only", config.only, True)):
            if name is not None:
                source = _select(source, key, name, listed, recipe_folder)
        return source
    except ConfigError as error:
        raise error.under(f"{section}.{error.key}") from None


def _select(source: Source, key: str, name: str, listed: bool, recipe_folder: str | Path | None) -> Source:
    """Returns the rows whose captions a file lists, or those whose captions it does not list."""
    captions = _captions_listed(_find(name, key, recipe_folder))
    texts = source.texts()
    if unknown := sorted(captions - set(texts)):
        raise ConfigError(
            key,
            f"{len(unknown)} lines match no caption of the data, first {unknown[0]!r}: each line is one whole caption, "
            "exactly as in the data",
            name,
        )
    kept = [i for i, text in enumerate(texts) if (text in captions) is listed]
    if not kept:
        raise ConfigError(key, "leaves no row", name)
    return Subset(source, kept, "others" if listed else "excluded")


def _open(config: DataConfig, recipe_folder: str | Path | None) -> Source:
    if config.source == "scenes":
        return ScenesSource(config.count, config.seed, config.subset, config.pixels)
    assert config.path
    naming = Naming(config.file_name_captions, config.kohya_folders, config.instance_prompt)
    if config.source == "hub":
        from t2i.data.hub import open_hub  # the hub's library, and pyarrow, take long to import

        return open_hub(config, naming)
    names = [config.path] if isinstance(config.path, str) else config.path
    paths = [_find(name, "path", recipe_folder) for name in names]
    if config.source == "folder":
        return FolderSource(paths, config.caption_column, config.allow_empty_captions, naming)
    from t2i.data.parquet import ParquetSource  # pyarrow takes half a second to import

    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError("path", "no *.parquet in that folder", config.path)
    return ParquetSource(files, config.image_column, config.caption_column, config.allow_empty_captions)


def _find(name: str, key: str, recipe_folder: str | Path | None) -> Path:
    places = [Path(name).expanduser(), *([Path(recipe_folder, name)] if recipe_folder is not None else [])]
    for place in places:
        if place.exists():
            return place
    tried = ", ".join(str(place.absolute()) for place in places)
    raise ConfigError(key, f"does not exist (looked at {tried})", name)


def _captions_listed(path: Path) -> set[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#")}
