#include <memory>

#include "bindings/bindings.h"
#include "rlwe/public_key.h"
#include "rlwe/secret_key.h"

namespace py = pybind11;

namespace hesplit {

namespace {

// Pickling or copying would put the secret into bytes that nobody zeroes.
py::object refuse(const std::shared_ptr<const SecretKey>&, const py::args&) {
    const py::object type = py::module_::import("builtins").attr("TypeError");
    PyErr_SetString(type.ptr(), "a secret key cannot be pickled or copied; use SecretKey.save(path, passphrase)");
    throw py::error_already_set();
}

}  // namespace

void register_keys(py::module_& module) {
    py::class_<SecretKey, std::shared_ptr<SecretKey>>(module, "SecretKey")
        .def_static(
            "generate",
            [](const Parameters& parameters) {
                py::gil_scoped_release release;
                return std::const_pointer_cast<SecretKey>(SecretKey::generate(parameters));
            },
            py::arg("parameters"))
        .def_property_readonly("parameters", &SecretKey::parameters)
        .def_property_readonly("id",
                               [](const SecretKey& key) {
                                   return py::bytes(reinterpret_cast<const char*>(key.id().data()), key.id().size());
                               })
        .def("released_before", &SecretKey::released_before, py::arg("count"))
        .def_property_readonly("released", &SecretKey::released)
        // A bytearray, which the caller can and must overwrite.
        .def("to_bytearray",
             [](const SecretKey& key) {
                 const SecretBuffer<std::uint8_t> bytes = key.bytes();
                 return py::bytearray(reinterpret_cast<const char*>(bytes.data()), bytes.size());
             })
        .def_static("from_bytes",
                    [](const py::buffer& bytes) {
                        return std::const_pointer_cast<SecretKey>(SecretKey::parse(Bytes(bytes).view()));
                    })
        .def("public_key",
             [](const SecretKey& key) {
                 py::gil_scoped_release release;
                 return std::const_pointer_cast<PublicKey>(PublicKey::of(key));
             })
        .def("destroy", &SecretKey::destroy)
        .def("__reduce_ex__", &refuse)
        .def("__copy__", &refuse)
        .def("__deepcopy__", &refuse);

    py::class_<PublicKey, std::shared_ptr<PublicKey>>(module, "PublicKey")
        .def_property_readonly("parameters", &PublicKey::parameters)
        .def_property_readonly("id",
                               [](const PublicKey& key) {
                                   return py::bytes(reinterpret_cast<const char*>(key.id().data()), key.id().size());
                               })
        .def("to_bytes", [](const PublicKey& key) { return py::bytes(key.bytes()); })
        .def_static(
            "from_bytes",
            [](const py::buffer& object) {
                const Bytes bytes(object);
                py::gil_scoped_release release;
                return std::const_pointer_cast<PublicKey>(PublicKey::parse(bytes.view()));
            },
            py::arg("data"));
}

}  // namespace hesplit
