"""The packages and pictures that nano is pretrained on (see collect_photos). All pictures were inspected by eye."""

from typing import NamedTuple


class Source(NamedTuple):
    """Pictures of one package: paths below the folder `cut` that match a glob of `take` and none of `skip`.

    Globs are separated by spaces. A Debian package contains the licence of each picture. A wheel (empty `cut`) does
    not: its licence and author are fields of this class.
    crops: number of windows cut from a large picture, in addition to the whole picture.
    """

    package: str
    version: str
    cut: str
    take: str
    skip: str = ""
    licence: str = ""
    author: str = ""
    crops: int = 4


GCOMPRIS = """
src/activities/categorization/resource/images/[fmort]*/* src/activities/details/resource/image/*
src/activities/erase/resource/* src/activities/explore_farm_animals/resource/animals/*
src/activities/explore_monuments/resource/*/* src/activities/leftright/resource/*
src/activities/explore_world_animals/resource/animals/* src/activities/explore_world_music/resource/music/*
src/activities/louis-braille/resource/* src/activities/clickgame/resource/sea*
"""
PLASMA = """
Autumn/*/2560* BytheWater/*/2560* ColorfulCups/*/2560* DarkestHour/*/2560* EveningGlow/*/2560* FallenLeaf/*/2560*
Grey/*/2560* Kite/*/2560* OneStandsOut/*/2560* Path/*/2560* summer_1am/*/2560* Shell/*/5120x2880.*
"""
TUXPAINT_DRAWN = """
*cartoon* */symbols/* */military/* */clothes/* *outline* *_mirror* *halloween* *hedgehog* */tree.png *bunny* *hatched*
*hanukkah* *dreydl* *menorah* *pizza* */eye.png */candy_cane* *stop.png *spade* *lightning*
"""
HUGIN_DRAWN = """
*fisheye* *cubic* *distort* *_post* *tereographic* *planet* *artific* *ca_*01* *ca_*03* *strange* *celeste* *150px*
*180px* *_2x* *withdust*
"""
KART = """
data/textures/*.jpg data/textures/hd_* data/textures/city_* data/textures/stk_*[a-zA-Z].png data/tracks/*/*.jpg
data/textures/skybox/*.jpg data/textures/deprecated/*.jpg data/library/*/*.jpg
"""
KART_DRAWN = """
*norm* *_nm.* *gloss* *alpha* *mask* *screenshot* *sshot* *pbr* *halo* *glow* *logo* *flag* *sign* *ibl* *terminal*
*lowpoly* *light_a* *futur* *_gfx* *kart* *tux_* *konqi* *paint* *shot-* *metro* *pattern* *flyingmap* *homework* *cow*
*welcome* */stk.jpg *danger* */s?.jpg *antler* *golf* */house* */duck* *tooth* *panel* *cross* *road?.jpg *road_ch*
*astro_turf* *border* *curbs* *stadi* *skull* *spiral* *globe* *sunray* *mudpot* *colorfab* *skyb* *winter_sky*
*magma_sky* *snowsky* *roadroundbrick* *wello* *shinto* *stars* *crab* *turbine* *corrug*
"""
SKIMAGE_CC0 = (
    "*/data/coffee.* */data/camera.* */data/chelsea.* */data/brick.* */data/grass.* */data/gravel.* */data/retina.*"
)
SKIMAGE_FREE = "*/data/astronaut.* */data/rocket.* */data/coins.* */data/ihc.* */data/moon.* */data/hubble_deep_field.*"

SOURCES = (
    Source("gcompris-qt-data", "3.1-2", "/gcompris/", GCOMPRIS, "*background*", crops=2),
    Source("tuxpaint-stamps-default", "2022.06.04-1", "usr/share/tuxpaint/", "stamps/*.png", TUXPAINT_DRAWN, crops=0),
    Source("mate-backgrounds", "1.26.0-1", "usr/share/backgrounds/mate/", "nature/* abstract/Elephants_5*"),
    Source(
        "lxqt-themes",
        "1.2.0-1",
        "usr/share/lxqt/",
        "wallpapers/*",
        "*logo* *origami* *triangle* *plasma* *simple_blue* *waves*",
    ),
    Source("lomiri-wallpapers-16.04", "20.04.0-2", "usr/share/backgrounds/", "*_by_*", "*analogpattern* *umang*"),
    Source("lomiri-wallpapers-20.04", "20.04.0-2", "usr/share/backgrounds/", "*_by_*", "*fossa* *obrine7*"),
    Source("plasma-workspace-wallpapers", "4:5.27.5-2", "usr/share/wallpapers/", PLASMA),
    Source("palapeli-data", "4:22.12.3-1", "usr/share/", "palapeli/collection/*.jpg"),
    Source("hugin-data", "2022.0.0+dfsg-2", "usr/share/", "hugin/xrc/*.jpg", HUGIN_DRAWN, crops=0),
    Source(
        "stellarium-data",
        "0.22.2-1",
        "usr/share/stellarium/",
        "landscapes/garching/*-g* landscapes/[gh]u[er]r*/* landscapes/mars/* scenery3d/Sterngarten/*",
        "*fog* *-lgt* *bump* *tafel* *eziffer* *height* *dontuse* *google* *concrete* *metal*",
        crops=2,
    ),
    Source("extremetuxracer-data", "0.8.2-1", "usr/share/games/etr/", "terrains/*", "*icy_* *snow*", crops=0),
    Source("supertuxkart-data", "1.4+dfsg-2", "usr/share/games/supertuxkart/", KART, KART_DRAWN, crops=0),
    Source("scikit-learn", "1.9.1", "", "*/images/china.jpg", "", "CC-BY-2.0", "danielbuechele (Flickr)"),
    Source("scikit-learn", "1.9.1", "", "*/images/flower.jpg", "", "CC-BY-2.0", "vultilion (Flickr)"),
    Source("scikit-image", "0.26.0", "", SKIMAGE_CC0, "", "CC0-1.0", "named in skimage.data"),
    Source(
        "scikit-image", "0.26.0", "", SKIMAGE_FREE, "", "public-domain", "named in skimage.data (NASA, SpaceX, ...)"
    ),
)
