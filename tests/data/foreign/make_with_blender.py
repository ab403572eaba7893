"""Writes the scenes of tests/data/foreign with Blender's exporters (bpy 5.0.1), each as GLB too."""

import os
import sys

import bpy

OUT = sys.argv[-1]
FBX = {"use_selection": False, "add_leaf_bones": False, "bake_anim": False, "use_metadata": False}


def fresh():
    bpy.ops.wm.read_factory_settings(use_empty=True)


def material(name, colour, image=None):
    m = bpy.data.materials.new(name)
    m.use_nodes = True
    b = m.node_tree.nodes["Principled BSDF"]
    b.inputs["Base Color"].default_value = (*colour, 1)
    b.inputs["Metallic"].default_value = 0.25
    b.inputs["Roughness"].default_value = 0.4
    if image:
        t = m.node_tree.nodes.new("ShaderNodeTexImage")
        t.image = image
        m.node_tree.links.new(t.outputs["Color"], b.inputs["Base Color"])
    return m


def picture():
    image = bpy.data.images.new("stripes", 8, 4)
    px = []
    for y in range(4):
        for x in range(8):
            px += [x / 7, y / 3, 0.5 if (x, y) == (0, 0) else 0.0, 1]
    image.pixels = px
    image.filepath_raw = os.path.join(OUT, "stripes.png")
    image.file_format = "PNG"
    image.save()
    return image


def pattern(name="Flag", second_uv=True):
    """An L without any symmetry, with UVs that are not its positions."""
    me = bpy.data.meshes.new(name)
    me.from_pydata(
        [(0, 0, 0), (2, 0, 0), (2, 1, 0.1), (1, 1, 0.2), (1, 3, 0), (0, 3, 0.5), (0.3, 0.4, 1)],
        [],
        [(0, 1, 2, 3), (0, 3, 4, 5), (0, 1, 6)],
    )
    uv = me.uv_layers.new(name="Main")
    for n, loop in enumerate(me.loops):
        v = me.vertices[loop.vertex_index].co
        uv.data[n].uv = (0.1 + v.x * 0.3 + 0.05 * v.z, 0.2 + v.y * 0.2 + 0.01 * n)
    if second_uv:
        uv2 = me.uv_layers.new(name="Light")
        for n in range(len(me.loops)):
            uv2.data[n].uv = (n / 20, 1 - n / 16)
    ob = bpy.data.objects.new(name, me)
    bpy.context.collection.objects.link(ob)
    return ob


def flag():
    fresh()
    ob = pattern()
    ob.location = (1, 2, 3)
    ob.rotation_euler = (0.3, -0.2, 0.5)
    me = ob.data
    me.materials.append(material("Painted", (1, 1, 1), picture()))
    me.materials.append(material("Plain", (0.2, 0.6, 0.1)))
    me.polygons[2].material_index = 1


def tree():
    fresh()
    a = bpy.data.objects.new("Base", None)
    bpy.context.collection.objects.link(a)
    a.location = (0.5, -1, 2)
    a.rotation_euler = (0, 0, 0.7)
    a.scale = (2, 2, 2)
    ob = pattern("Leaf", False)
    ob.parent = a
    ob.location = (1, 0, 0.25)
    ob.rotation_euler = (0.4, 0, 0)
    two = bpy.data.objects.new("Leaf two", ob.data)
    bpy.context.collection.objects.link(two)
    two.parent = ob
    two.location = (0, 4, 0)
    two.scale = (1, 0.5, 1)
    ob.data.materials.append(material("Green", (0.1, 0.7, 0.2)))
    col = ob.data.color_attributes.new("Tint", "BYTE_COLOR", "CORNER")
    for n, d in enumerate(col.data):
        d.color = (n / 12, 0.5, 1 - n / 12, 1)
    cam = bpy.data.objects.new("Eye", bpy.data.cameras.new("Eye"))
    bpy.context.collection.objects.link(cam)
    cam.location = (7, -6, 5)
    cam.rotation_euler = (1.1, 0, 0.8)
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    bpy.context.collection.objects.link(sun)
    sun.rotation_euler = (0.5, 0.2, 0.1)


def rig():
    fresh()
    ob = pattern("Body", False)
    ob.shape_key_add(name="Basis")
    k = ob.shape_key_add(name="Raise")
    k.data[6].co.z = 2.5
    arm = bpy.data.armatures.new("Bones")
    ao = bpy.data.objects.new("Rig", arm)
    bpy.context.collection.objects.link(ao)
    ao.location = (0.5, 0, 0)
    bpy.context.view_layer.objects.active = ao
    bpy.ops.object.mode_set(mode="EDIT")
    b = arm.edit_bones.new("Hip")
    b.head = (0, 0, 0)
    b.tail = (0, 1.5, 0)
    c = arm.edit_bones.new("Tip")
    c.head = (0, 1.5, 0)
    c.tail = (0, 3, 0.5)
    c.parent = b
    bpy.ops.object.mode_set(mode="OBJECT")
    ob.parent = ao
    ob.modifiers.new("a", "ARMATURE").object = ao
    hip, tip = ob.vertex_groups.new(name="Hip"), ob.vertex_groups.new(name="Tip")
    for v, w in ((0, 1), (1, 1), (2, 0.75), (3, 0.5), (4, 0), (5, 0), (6, 1)):
        if w:
            hip.add([v], w, "REPLACE")
        if w < 1:
            tip.add([v], 1 - w, "REPLACE")
    s = bpy.context.scene
    s.render.fps = 24
    s.frame_start = 0
    s.frame_end = 6
    for f in (0, 6):
        p = ao.pose.bones["Tip"]
        p.rotation_mode = "XYZ"
        p.rotation_euler = (0.9 * f / 6, 0.3 * f / 6, 0)
        p.keyframe_insert("rotation_euler", frame=f)
        k.value = f / 6
        k.keyframe_insert("value", frame=f)
    s.frame_set(6)


def glb(name, **more):
    bpy.ops.export_scene.gltf(filepath=f"{OUT}/{name}.glb", export_cameras=True, export_lights=True, **more)


flag()
bpy.ops.export_scene.fbx(filepath=f"{OUT}/flag.fbx", path_mode="COPY", embed_textures=True, **FBX)
bpy.ops.export_scene.fbx(filepath=f"{OUT}/flag_z_up.fbx", axis_forward="Y", axis_up="Z", path_mode="STRIP", **FBX)
bpy.ops.export_scene.fbx(
    filepath=f"{OUT}/flag_x_up_metres.fbx",
    axis_forward="Z",
    axis_up="X",
    apply_scale_options="FBX_SCALE_ALL",
    path_mode="STRIP",
    **FBX,
)
bpy.ops.export_scene.fbx(filepath=f"{OUT}/flag_baked_axes.fbx", bake_space_transform=True, path_mode="STRIP", **FBX)
bpy.ops.wm.obj_export(filepath=f"{OUT}/flag.obj", path_mode="STRIP")
bpy.ops.wm.usd_export(filepath=f"{OUT}/flag.usdc", export_textures_mode="NEW", relative_paths=True)
bpy.ops.wm.usd_export(filepath=f"{OUT}/flag.usdz")
glb("flag")
tree()
bpy.ops.export_scene.fbx(filepath=f"{OUT}/tree.fbx", path_mode="STRIP", **FBX)
bpy.ops.wm.usd_export(filepath=f"{OUT}/tree.usda")
glb("tree")
rig()
bpy.ops.export_scene.fbx(
    filepath=f"{OUT}/rig.fbx",
    path_mode="STRIP",
    **{**FBX, "bake_anim": True},
    bake_anim_use_nla_strips=False,
    bake_anim_use_all_actions=False,
    bake_anim_force_startend_keying=False,
)
bpy.ops.wm.usd_export(filepath=f"{OUT}/rig.usdc", export_animation=True, export_armatures=True, export_shapekeys=True)
glb("rig", export_rest_position_armature=False)
